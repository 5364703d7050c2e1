/* L2 norm and largest |g| of many float32 arrays, each read once.

   Rows of 2,048 are summed in float32 and the rows in float64; a row whose squares leave the range of float32 is summed
   again times a power of two, which loses nothing, while it is in the cache. The largest |g| is taken from the bits without
   their sign, which are ordered as the sizes are, and NaN above all. Needs GCC or Clang. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline))

enum { PARTS = 4, ROW = 2048, LANES = 8, LINE = 16, UNSIGNED = 0x7fffffff };

/* How far ahead memory is asked for values: of 128 to 4,096, the least with which large gradients read a fifth faster. */
enum { AHEAD = 512 };

/* A mean square of float32 above this loses less than 1e-7 of itself to squares that are flushed to zero. */
static const double LEAST = 1e-31;

/* 2^-80 for large values, 1, and 2^96 for small ones: where one is too large or small, the next one is not the other. */
static const float SCALES[] = {0x1p-80f, 1.0f, 0x1p96f};

/* The index of the scale to take instead; the same where nothing was lost, or nothing can be done about it. */
static inline int fitting_scale(double sum, int64_t size, int scale) {
    if (!(sum <= FLT_MAX)) return scale > 0 ? scale - 1 : 0;
    if (sum < LEAST * size) return scale < 2 ? scale + 1 : 2;
    return scale;
}

/* The norm that torch's own kernel gives, bit for bit: one float32 sum in each of eight lanes, the lanes added up in `lanes`
   so far; of the `size` values left, fours are squared and then added, the last ones squared and added at once. Seen in its
   builds for AVX2 and AVX-512, where products and sums are not contracted but for those last ones. Of one value alone it takes
   the size, which leaves no range, and so does the caller. */
static float ended_as_torch(float *lanes, const float *values, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int lane = 0; lane < LANES; lane++) lanes[lane] += values[i + lane] * values[i + lane];
    float sum = lanes[0];
    for (int lane = 1; lane < LANES; lane++) sum += lanes[lane];
    for (int64_t fours = i + (size - i) / 4 * 4; i < fours; i++) sum += values[i] * values[i];
    for (; i < size; i++) sum = fmaf(values[i], values[i], sum);
    return sqrtf(sum);
}

#define WIDTH 4
#define TARGET
#define NAMED(name) name##_4
#define LARGER(a, b) (((a) & ((a) > (b))) | ((b) & ~((a) > (b))))
#include "width.h"
#undef WIDTH
#undef TARGET
#undef NAMED
#undef LARGER

#ifdef __x86_64__
#define WIDTH 8
#define TARGET __attribute__((target("avx2,fma")))
#define NAMED(name) name##_8
#define LARGER(a, b) ((bits_8)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#include "width.h"
#endif

/* How many floats this processor handles at once. */
int norms_width(void) {
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 8;
#endif
    return 4;
}

static double all(const float *const *values, const int64_t *sizes, int64_t count, int width, double *norms, double *peaks,
                  float *as_torch) {
    switch (width) {
#ifdef __x86_64__
        case 8: return all_8(values, sizes, count, norms, peaks, as_torch);
#endif
        default: return all_4(values, sizes, count, norms, peaks, as_torch);
    }
}

/* `norms[i]` and `peaks[i]` of the `sizes[i]` values at `values[i]`, NaN where that is null, by vectors of `width`, of which
   the processor must be capable; `as_torch[i]`, unless that is null, is the norm as torch rounds it. Returns the sum of the
   squared norms.

   Squares below the normal range take some processors a hundred times as long. A row that they matter to is summed again in
   any case, and so they are flushed to zero here, except where torch's rounding is asked for. */
double norms(const float *const *values, const int64_t *sizes, int64_t count, int width, double *norms, double *peaks,
             float *as_torch) {
#ifdef __x86_64__
    unsigned mode = _mm_getcsr();
    if (!as_torch) _mm_setcsr(mode | _MM_FLUSH_ZERO_ON);
    double sum = all(values, sizes, count, width, norms, peaks, as_torch);
    _mm_setcsr(mode);
    return sum;
#else
    return all(values, sizes, count, width, norms, peaks, as_torch);
#endif
}
