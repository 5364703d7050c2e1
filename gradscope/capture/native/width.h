/* The passes for one width of vectors: WIDTH floats at a time, in functions named NAMED(…), for processors that have TARGET.
   LARGER(a, b) is the larger of each two integers. */

typedef float NAMED(floats) __attribute__((vector_size(4 * WIDTH)));
typedef int32_t NAMED(bits) __attribute__((vector_size(4 * WIDTH)));

enum { NAMED(STRIDE) = WIDTH * PARTS, NAMED(CHAINS) = LANES / WIDTH };

/* Σ(scale g)² of one row, a multiple of STRIDE long; `tops` keeps the largest bits seen in each lane, and `chain`, unless it
   is null, the sums of squares that torch would have. */
TARGET INLINE double NAMED(scaled_row)(const float *values, int64_t size, float scale, NAMED(bits) *tops,
                                       NAMED(floats) *chain) {
    const NAMED(bits) mask = (NAMED(bits)){0} + UNSIGNED;
    NAMED(floats) sums[PARTS] = {{0}}, squares[NAMED(CHAINS)] = {{0}};
    double sum = 0.0;
    if (chain) memcpy(squares, chain, sizeof squares);
    for (int64_t i = 0; i < size; i += NAMED(STRIDE))
        for (int part = 0; part < PARTS; part++) {
            NAMED(floats) value;
            if (part * WIDTH % LINE == 0) __builtin_prefetch(values + i + part * WIDTH + AHEAD);
            memcpy(&value, values + i + part * WIDTH, sizeof value);
            tops[part] = LARGER((NAMED(bits))value & mask, tops[part]);
            if (chain) squares[part % NAMED(CHAINS)] += value * value;
            value *= scale;
            sums[part] += value * value;
        }
    if (chain) memcpy(chain, squares, sizeof squares);
    for (int part = 1; part < PARTS; part++) sums[0] += sums[part];
    for (int lane = 0; lane < WIDTH; lane++) sum += sums[0][lane];
    return sum;
}

/* Σg² of one row. `scale`: an index into SCALES, where the search for one that keeps the squares within float32 begins. */
TARGET INLINE double NAMED(row)(const float *values, int64_t size, int *scale, NAMED(bits) *tops, NAMED(floats) *chain) {
    double sum = NAMED(scaled_row)(values, size, SCALES[*scale], tops, chain);
    for (int fitting; (fitting = fitting_scale(sum, size, *scale)) != *scale;) {
        *scale = fitting;
        sum = NAMED(scaled_row)(values, size, SCALES[fitting], tops, NULL);
    }
    return sum / ((double)SCALES[*scale] * SCALES[*scale]);
}

TARGET INLINE void NAMED(read)(const float *values, int64_t size, double *norm, double *peak, float *as_torch) {
    NAMED(bits) tops[PARTS] = {{0}};
    NAMED(floats) chain[NAMED(CHAINS)] = {{0}}, *chained = as_torch ? chain : NULL;
    int64_t whole = size - size % NAMED(STRIDE);
    double sum = 0.0;
    int32_t top = 0;
    int scale = 1;
    for (int64_t i = 0; i < whole; i += ROW) {
        int64_t length = whole - i < ROW ? whole - i : ROW;
        sum += NAMED(row)(values + i, length, &scale, tops, chained);
    }
    for (int64_t i = whole; i < size; i++) {
        int32_t magnitude;
        memcpy(&magnitude, values + i, sizeof magnitude);
        magnitude &= UNSIGNED;
        top = magnitude > top ? magnitude : top;
        sum += (double)values[i] * values[i];
    }
    if (as_torch) *as_torch = size == 1 ? fabsf(*values) : ended_as_torch((float *)chain, values + whole, size - whole);
    for (int part = 0; part < PARTS; part++)
        for (int lane = 0; lane < WIDTH; lane++) top = tops[part][lane] > top ? tops[part][lane] : top;
    float largest;
    memcpy(&largest, &top, sizeof top);
    *peak = largest;
    *norm = sqrt(sum);
}

TARGET APART double NAMED(all)(const float *const *values, const int64_t *sizes, int64_t count, double *norms, double *peaks,
                               float *as_torch) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; i++) {
        if (!values[i]) {
            norms[i] = peaks[i] = NAN;
            continue;
        }
        NAMED(read)(values[i], sizes[i], norms + i, peaks + i, as_torch ? as_torch + i : NULL);
        sum += norms[i] * norms[i];
    }
    return sum;
}
