// A few vectors times one large matrix, which is what decoding consists of: reading the matrix is all that takes time.
//
//   out[t][n] = f(sum_k x[t][k] * weight[n][k] + bias[n]),    f the identity or GELU, in float32
//
// The matrix is read once from memory for all t. A thread reads two rows at a time, half of its share apart: two
// streams without gaps, which the processor's prefetchers follow (two neighbouring rows are one stream with jumps, and
// reach 60% of the bandwidth). Up to six vectors share two rows while these are in registers: 12 sums, 2 rows, 1 vector
// are 15 of the 16 registers of AVX2.

#include <cstdint>
#include <immintrin.h>

namespace {

constexpr long lanes = 8, tile = 6, prefetch_bytes = 1024;

struct Float32 {
    using type = float;
    static __m256 load(const float *p) { return _mm256_loadu_ps(p); }
    static float scalar(float value) { return value; }
};

struct BFloat16 {
    using type = uint16_t;
    static __m256 load(const uint16_t *p) {
        const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
        return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
    }
    static float scalar(uint16_t value) {
        const uint32_t bits = uint32_t(value) << 16;
        float result;
        __builtin_memcpy(&result, &bits, sizeof result);
        return result;
    }
};

struct Float16 {
    using type = uint16_t;
    static __m256 load(const uint16_t *p) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
    }
    static float scalar(uint16_t value) { return _cvtsh_ss(value); }
};

float sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_hadd_ps(s, s);
    s = _mm_hadd_ps(s, s);
    return _mm_cvtss_f32(s);
}

// Two rows of the matrix times `count` vectors that lie `width` apart; the sums go to first[t * stride], second[...].
template <class Weight, int count>
void two_rows(const typename Weight::type *a, const typename Weight::type *b, const float *x, long width, float *first,
              float *second, long stride) {
    __m256 sums_a[count], sums_b[count];
    for (int t = 0; t < count; t++) sums_a[t] = sums_b[t] = _mm256_setzero_ps();
    long k = 0;
    for (; k + lanes <= width; k += lanes) {
        const __m256 weight_a = Weight::load(a + k), weight_b = Weight::load(b + k);
        _mm_prefetch(reinterpret_cast<const char *>(a + k) + prefetch_bytes, _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char *>(b + k) + prefetch_bytes, _MM_HINT_T0);
#pragma GCC unroll 6
        for (int t = 0; t < count; t++) {
            const __m256 vector = _mm256_loadu_ps(x + t * width + k);
            sums_a[t] = _mm256_fmadd_ps(weight_a, vector, sums_a[t]);
            sums_b[t] = _mm256_fmadd_ps(weight_b, vector, sums_b[t]);
        }
    }
    for (int t = 0; t < count; t++) {
        float sum_a = sum(sums_a[t]), sum_b = sum(sums_b[t]);
        for (long rest = k; rest < width; rest++) {
            sum_a += Weight::scalar(a[rest]) * x[t * width + rest];
            sum_b += Weight::scalar(b[rest]) * x[t * width + rest];
        }
        first[t * stride] = sum_a;
        second[t * stride] = sum_b;
    }
}

template <class Weight>
void rows(const typename Weight::type *weight, const float *x, float *out, long vectors, long width, long height,
          long begin, long end) {
    using Function = void (*)(const typename Weight::type *, const typename Weight::type *, const float *, long,
                              float *, float *, long);
    static constexpr Function of_count[] = {two_rows<Weight, 1>, two_rows<Weight, 2>, two_rows<Weight, 3>,
                                            two_rows<Weight, 4>, two_rows<Weight, 5>, two_rows<Weight, 6>};
    const long half = (end - begin + 1) / 2, tiles = (vectors + tile - 1) / tile;
    for (long n = begin; n < begin + half; n++) {
        // The middle one of an odd number of rows is computed twice.
        const long other = n + half < end ? n + half : n;
        for (long i = 0; i < tiles; i++) {
            const long t = i * vectors / tiles, count = (i + 1) * vectors / tiles - t;
            of_count[count - 1](weight + n * width, weight + other * width, x + t * width, width,
                                out + t * height + n, out + t * height + other, height);
        }
    }
}

// The error function within 1e-6: x P(x^2) / Q(x^2) for |x| < 4, +1 and -1 beyond; coefficients as in Eigen's erf.
float error_function(float x) {
    x = x > 4 ? 4 : x < -4 ? -4 : x;
    const float y = x * x;
    const float p = -1.60960333262415e-02f +
                    y * (-2.95459980854025e-03f +
                         y * (-7.34990630326855e-04f +
                              y * (-5.69250639462346e-05f +
                                   y * (-2.10102402082508e-06f + y * (2.77068142495902e-08f + y * -2.72614225801306e-10f)))));
    const float q =
        -1.42647390514189e-02f +
        y * (-7.37332916720468e-03f + y * (-1.68282697438203e-03f + y * (-2.13374055278905e-04f + y * -1.45660718464996e-05f)));
    return x * p / q;
}

void add_bias(float *out, const float *bias, long count) {
    for (long n = 0; n < count; n++) out[n] += bias[n];
}

void apply_gelu(float *out, long count) {
    for (long n = 0; n < count; n++) out[n] *= 0.5f + 0.5f * error_function(out[n] * 0.70710678f);
}

template <class Weight>
void product(const typename Weight::type *weight, const float *x, const float *bias, bool gelu, float *out,
             long matrices, long vectors, long width, long height, long threads) {
    const long per_matrix = matrices < threads ? (threads + matrices - 1) / matrices : 1;
    const long shares = matrices * per_matrix;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long share = 0; share < shares; share++) {
        const long matrix = share / per_matrix, part = share % per_matrix;
        const long begin = part * height / per_matrix, end = (part + 1) * height / per_matrix;
        float *const sums = out + matrix * vectors * height;
        rows<Weight>(weight + matrix * height * width, x + matrix * vectors * width, sums, vectors, width, height, begin,
                     end);
        for (long t = 0; t < vectors; t++) {
            if (bias) add_bias(sums + t * height + begin, bias + begin, end - begin);
            if (gelu) apply_gelu(sums + t * height + begin, end - begin);
        }
    }
}

} // namespace

// weight (matrices, height, width), x (matrices, vectors, width), out (matrices, vectors, height), all contiguous; bias
// (height) or null. type: 0 for a float32 weight, 1 for bfloat16, 2 for float16.
extern "C" void few_rows(int type, const void *weight, const float *x, const float *bias, int gelu, float *out,
                         long matrices, long vectors, long width, long height, long threads) {
    const auto run = [&](auto kind) {
        using Weight = decltype(kind);
        product<Weight>(static_cast<const typename Weight::type *>(weight), x, bias, gelu, out, matrices, vectors, width,
                        height, threads);
    };
    if (type == 0)
        run(Float32());
    else if (type == 1)
        run(BFloat16());
    else
        run(Float16());
}
