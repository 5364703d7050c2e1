/* L2 norm, largest |g| and the count of nonfinite elements of many arrays on an NVIDIA GPU, each read once.

   `partial` reads one piece of CHUNK elements a block, `total` adds the pieces of an array up, in their order. Squares are
   summed in float64. The largest |g| is taken from the bits without their sign, which are ordered as the sizes are, and NaN
   above all.

   `table`, for n arrays: n sizes, n kinds of number, n + 1 places of an array's first piece (the last one is the count of
   pieces), and for each piece its array. Compiled by NVRTC, with CHUNK, THREADS, WARP and MOST defined. */

typedef unsigned int Bits32;
typedef unsigned long long Bits64;

/* Where up to MOST arrays are: as many as fit among the arguments of a kernel. */
struct Addresses {
    const void *at[MOST];
};

struct Found {
    double sum;
    Bits64 peak;
    Bits64 nonfinite;
};

struct Float {
    typedef float Number;
    static __device__ float at(const void *values, Bits64 i) { return ((const float *)values)[i]; }
};
struct Double {
    typedef double Number;
    static __device__ double at(const void *values, Bits64 i) { return ((const double *)values)[i]; }
};
struct Bfloat {
    typedef float Number;
    static __device__ float at(const void *values, Bits64 i) {
        return __uint_as_float((Bits32)((const unsigned short *)values)[i] << 16);
    }
};
struct Half {
    typedef float Number;
    static __device__ float at(const void *values, Bits64 i) {
        float single;
        asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(((const unsigned short *)values)[i]));
        return single;
    }
};

static __device__ Bits32 bits(float value) { return __float_as_uint(value) & 0x7fffffffu; }
static __device__ Bits64 bits(double value) { return __double_as_longlong(value) & 0x7fffffffffffffffull; }
static __device__ double number(Bits32 bits) { return __uint_as_float(bits); }
static __device__ double number(Bits64 bits) { return __longlong_as_double(bits); }

template <typename Kind>
static __device__ Found read(const void *values, Bits64 begin, Bits64 end) {
    double sum = 0.0;
    auto peak = bits(typename Kind::Number(0));
    const auto infinite = bits((typename Kind::Number)__longlong_as_double(0x7ff0000000000000ull));
    unsigned nonfinite = 0;
#pragma unroll 8
    for (Bits64 i = begin + threadIdx.x; i < end; i += THREADS) {
        const auto value = Kind::at(values, i);
        const auto size = bits(value);
        sum = fma((double)value, (double)value, sum);
        peak = size > peak ? size : peak;
        nonfinite += size >= infinite;
    }
    return {sum, bits(number(peak)), nonfinite};
}

static __device__ Found both(Found a, Found b) {
    return {a.sum + b.sum, a.peak > b.peak ? a.peak : b.peak, a.nonfinite + b.nonfinite};
}

/* What the threads of a warp found, in its first. */
static __device__ Found over_warp(Found found) {
    for (int apart = WARP / 2; apart; apart /= 2)
        found = both(found, {__shfl_down_sync(~0u, found.sum, apart), __shfl_down_sync(~0u, found.peak, apart),
                             __shfl_down_sync(~0u, found.nonfinite, apart)});
    return found;
}

/* A block reads one piece of the arrays from the array `from` on, which are at `addresses`. */
extern "C" __global__ void partial(Addresses addresses, int from, const Bits64 *table, int count, Found *pieces) {
    const Bits64 *sizes = table, *kinds = sizes + count, *first = kinds + count, *owner = first + count + 1;
    const Bits64 piece = first[from] + blockIdx.x, array = owner[piece];
    const Bits64 begin = (piece - first[array]) * CHUNK;
    const Bits64 end = begin + CHUNK < sizes[array] ? begin + CHUNK : sizes[array];
    const void *values = addresses.at[array - from];
    Found found;
    switch (kinds[array]) {
        case 0: found = read<Float>(values, begin, end); break;
        case 1: found = read<Bfloat>(values, begin, end); break;
        case 2: found = read<Half>(values, begin, end); break;
        default: found = read<Double>(values, begin, end);
    }
    __shared__ Found warps[THREADS / WARP];
    found = over_warp(found);
    if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = found;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < THREADS / WARP; i++) found = both(found, warps[i]);
    pieces[piece] = found;
}

/* `results`: (3, count), the norms, the largest |g| and the counts. A norm with nonfinite elements is the largest of them. */
extern "C" __global__ void total(const Bits64 *table, int count, const Found *pieces, double *results) {
    const Bits64 *first = table + 2 * count;
    Found found = {0.0, 0, 0};
    for (Bits64 i = first[blockIdx.x] + threadIdx.x; i < first[blockIdx.x + 1]; i += WARP) found = both(found, pieces[i]);
    found = over_warp(found);
    if (threadIdx.x) return;
    results[blockIdx.x] = found.nonfinite ? number(found.peak) : sqrt(found.sum);
    results[count + blockIdx.x] = number(found.peak);
    results[2 * count + blockIdx.x] = (double)found.nonfinite;
}
