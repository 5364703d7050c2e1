/* The passes for one width of vectors: WIDTH floats at a time, in functions named NAMED(…), for processors that have TARGET.
   LARGER(a, b) is the larger of each two integers. */

typedef float NAMED(floats) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAMED(bits) __attribute__((vector_size(4 * WIDTH)));

enum { NAMED(STRIDE) = WIDTH * PARTS };

/* Σ(scale g)² of one row, a multiple of STRIDE long; `tops` keeps the largest bits seen in each lane. */
TARGET INLINE double NAMED(scaled_row)(const float *values, int64_t size, float scale, NAMED(bits) *tops) {
    const NAMED(bits) mask = (NAMED(bits)){0} + UNSIGNED;
    NAMED(floats) sums[PARTS] = {{0}};
    double sum = 0.0;
    for (int64_t i = 0; i < size; i += NAMED(STRIDE))
        for (int part = 0; part < PARTS; part++) {
            NAMED(floats) value;
            memcpy(&value, values + i + part * WIDTH, sizeof value);
            tops[part] = LARGER((NAMED(bits))value & mask, tops[part]);
            value *= scale;
            sums[part] += value * value;
        }
    for (int part = 1; part < PARTS; part++) sums[0] += sums[part];
    for (int lane = 0; lane < WIDTH; lane++) sum += sums[0][lane];
    return sum;
}

/* Σg² of one row. `scale`: an index into SCALES, where the search for one that keeps the squares within float32 begins. */
TARGET INLINE double NAMED(row)(const float *values, int64_t size, int *scale, NAMED(bits) *tops) {
    for (;;) {
        double sum = NAMED(scaled_row)(values, size, SCALES[*scale], tops);
        int fitting = fitting_scale(sum, size, *scale);
        if (fitting == *scale) return sum / ((double)SCALES[*scale] * SCALES[*scale]);
        *scale = fitting;
    }
}

TARGET INLINE void NAMED(multiply)(float *values, int64_t size, float factor) {
    for (int64_t i = 0; i < size; i++) values[i] *= factor;
}

TARGET INLINE void NAMED(read)(float *values, int64_t size, const float *factor, double *norm, double *peak) {
    NAMED(bits) tops[PARTS] = {{0}};
    int64_t whole = size - size % NAMED(STRIDE);
    double sum = 0.0;
    int32_t top = 0;
    int scale = 1;
    for (int64_t i = 0; i < whole; i += ROW) {
        int64_t length = whole - i < ROW ? whole - i : ROW;
        sum += NAMED(row)(values + i, length, &scale, tops);
        if (factor) NAMED(multiply)(values + i, length, *factor);
    }
    for (int64_t i = whole; i < size; i++) {
        int32_t magnitude;
        memcpy(&magnitude, values + i, sizeof magnitude);
        magnitude &= UNSIGNED;
        top = magnitude > top ? magnitude : top;
        sum += (double)values[i] * values[i];
    }
    if (factor) NAMED(multiply)(values + whole, size - whole, *factor);
    for (int part = 0; part < PARTS; part++)
        for (int lane = 0; lane < WIDTH; lane++) top = tops[part][lane] > top ? tops[part][lane] : top;
    float largest;
    memcpy(&largest, &top, sizeof top);
    *peak = largest;
    *norm = sqrt(sum);
}

TARGET static double NAMED(all)(float *const *values, const int64_t *sizes, int64_t count, const float *factor,
                                double *norms, double *peaks) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        if (!values[i]) {
            norms[i] = peaks[i] = NAN;
            continue;
        }
        NAMED(read)(values[i], sizes[i], factor, norms + i, peaks + i);
        sum += norms[i] * norms[i];
    }
    return sum;
}
