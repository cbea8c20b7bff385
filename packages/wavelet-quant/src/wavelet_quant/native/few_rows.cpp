// A few vectors times one large matrix, which is what decoding consists of: reading the matrix is all that takes time.
//
//   out[t][n] = f(sum_k x[t][k] * weight[n][k] + bias[n]),    f the identity or GELU, in float32
//
// The matrix is read once from memory for all t.
//
// Up to 11 vectors: a thread reads two rows at a time, half of its share apart, which are two streams without gaps that
// the processor's prefetchers follow (two neighbouring rows are one stream with jumps, and reach 60% of the bandwidth).
// Up to six vectors share two rows while these are in registers: 12 sums, 2 rows, 1 vector are 15 of AVX2's 16.
//
// From 12 vectors on arithmetic is what takes time, and the lanes of a register are vectors instead: the vectors are
// stored in tiles of 16 or 24, channel by channel, and each weight is multiplied with a whole tile.

#include <algorithm>
#include <cstdint>
#include <immintrin.h>
#include <type_traits>
#include <vector>

namespace {

constexpr long lanes = 8, most_sharing = 6, prefetch_bytes = 1024, first_tiled = 12;
constexpr long group = 12; // rows of the matrix that stay in the cache for all tiles

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
void by_rows(const typename Weight::type *weight, const float *x, float *out, long vectors, long width, long height,
          long begin, long end) {
    using Function = void (*)(const typename Weight::type *, const typename Weight::type *, const float *, long,
                              float *, float *, long);
    static constexpr Function of_count[] = {two_rows<Weight, 1>, two_rows<Weight, 2>, two_rows<Weight, 3>,
                                            two_rows<Weight, 4>, two_rows<Weight, 5>, two_rows<Weight, 6>};
    const long half = (end - begin + 1) / 2, parts = (vectors + most_sharing - 1) / most_sharing;
    for (long n = begin; n < begin + half; n++) {
        // The middle one of an odd number of rows is computed twice.
        const long other = n + half < end ? n + half : n;
        for (long i = 0; i < parts; i++) {
            const long t = i * vectors / parts, count = (i + 1) * vectors / parts - t;
            of_count[count - 1](weight + n * width, weight + other * width, x + t * width, width,
                                out + t * height + n, out + t * height + other, height);
        }
    }
}

// Tiles of vectors: `registers` (2 or 3) times 8 of them side by side for every channel, the last one filled with zeros.
struct Tiles {
    const float *values;
    long vectors, width;

    long eights() const { return (vectors + lanes - 1) / lanes; }

    // How many of the eights that are left make a tile: never a single one at the end.
    static long registers(long left) { return left == 3 || left == 5 ? 3 : 2; }
};

// Eight channels of eight vectors, which lie `width` apart, with the vectors side by side: to rows `stride` apart.
void transpose_eight(const float *x, long width, float *out, long stride) {
    __m256 rows[8], pairs[8], fours[8];
    for (int t = 0; t < 8; t++) rows[t] = _mm256_loadu_ps(x + t * width);
    for (int t = 0; t < 8; t += 2) {
        pairs[t] = _mm256_unpacklo_ps(rows[t], rows[t + 1]);
        pairs[t + 1] = _mm256_unpackhi_ps(rows[t], rows[t + 1]);
    }
    for (int t = 0; t < 8; t += 4)
        for (int i = 0; i < 2; i++) {
            fours[t + 2 * i] = _mm256_shuffle_ps(pairs[t + i], pairs[t + i + 2], 0x44);
            fours[t + 2 * i + 1] = _mm256_shuffle_ps(pairs[t + i], pairs[t + i + 2], 0xee);
        }
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps(out + k * stride, _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x20));
        _mm256_storeu_ps(out + (k + 4) * stride, _mm256_permute2f128_ps(fours[k], fours[k + 4], 0x31));
    }
}

// Write the tiles of vectors that lie `width` apart.
Tiles make_tiles(const float *x, long vectors, long width, float *memory) {
    const Tiles tiles{memory, vectors, width};
    for (long done = 0; done < tiles.eights();) {
        const long registers = Tiles::registers(tiles.eights() - done), stride = registers * lanes;
        for (long first = 0; first < stride; first += lanes) {
            const long left = vectors - done * lanes - first;
            const float *const own = x + (done * lanes + first) * width;
            long k = 0;
            if (left >= lanes)
                for (; k + lanes <= width; k += lanes) transpose_eight(own + k, width, memory + k * stride + first, stride);
            for (; k < width; k++)
                for (long t = 0; t < lanes; t++) memory[k * stride + first + t] = t < left ? own[t * width + k] : 0;
        }
        memory += stride * width;
        done += registers;
    }
    return tiles;
}

// `height` rows of the matrix, `width` apart, times one tile; the sums go to out[t * stride + row] for `count` vectors.
template <int registers, int height>
void rows_by_tile(const float *weight, const float *tile, long width, float *out, long stride, long count) {
    __m256 sums[height][registers];
#pragma GCC unroll 6
    for (int n = 0; n < height; n++)
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) sums[n][v] = _mm256_setzero_ps();
    for (long k = 0; k < width; k++) {
        __m256 vectors[registers];
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) vectors[v] = _mm256_loadu_ps(tile + (k * registers + v) * lanes);
#pragma GCC unroll 6
        for (int n = 0; n < height; n++) {
            const __m256 factor = _mm256_broadcast_ss(weight + n * width + k);
#pragma GCC unroll 3
            for (int v = 0; v < registers; v++) sums[n][v] = _mm256_fmadd_ps(factor, vectors[v], sums[n][v]);
        }
    }
    float column[registers * lanes];
#pragma GCC unroll 6
    for (int n = 0; n < height; n++) {
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) _mm256_storeu_ps(column + v * lanes, sums[n][v]);
        for (long t = 0; t < std::min<long>(count, registers * lanes); t++) out[t * stride + n] = column[t];
    }
}

// Weights in float32: themselves, or converted into `memory`.
template <class Weight>
const float *as_float(const typename Weight::type *source, long count, std::vector<float> &memory) {
    if constexpr (std::is_same_v<typename Weight::type, float>) {
        return source;
    } else {
        memory.resize(count);
        long i = 0;
        for (; i + lanes <= count; i += lanes) _mm256_storeu_ps(&memory[i], Weight::load(source + i));
        for (; i < count; i++) memory[i] = Weight::scalar(source[i]);
        return memory.data();
    }
}

template <class Weight>
void by_tiles(const typename Weight::type *weight, const Tiles &tiles, float *out, long height, long begin, long end) {
    const long width = tiles.width;
    std::vector<float> converted;
    // The last rows of a number that is no multiple of the group are computed twice.
    for (long next = begin; next < end; next += group) {
        const long n = std::min(next, end - group);
        const float *const rows = as_float<Weight>(weight + n * width, group * width, converted);
        const float *tile = tiles.values;
        for (long done = 0; done < tiles.eights();) {
            const long registers = Tiles::registers(tiles.eights() - done), t = done * lanes, count = tiles.vectors - t;
            float *const sums = out + t * height + n;
            if (registers == 2)
                for (long r = 0; r < group; r += 6)
                    rows_by_tile<2, 6>(rows + r * width, tile, width, sums + r, height, count);
            else
                for (long r = 0; r < group; r += 4)
                    rows_by_tile<3, 4>(rows + r * width, tile, width, sums + r, height, count);
            tile += registers * lanes * width;
            done += registers;
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
    std::vector<Tiles> tiles;
    if (vectors >= first_tiled) {
        // Kept from call to call: fresh memory of this size costs more than filling it.
        static thread_local std::vector<float> memory;
        const long size = (vectors + lanes - 1) / lanes * lanes * width;
        memory.resize(std::max<long>(memory.size(), matrices * size));
        for (long matrix = 0; matrix < matrices; matrix++)
            tiles.push_back(make_tiles(x + matrix * vectors * width, vectors, width, memory.data() + matrix * size));
    }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (long share = 0; share < shares; share++) {
        const long matrix = share / per_matrix, part = share % per_matrix;
        const long begin = part * height / per_matrix, end = (part + 1) * height / per_matrix;
        float *const sums = out + matrix * vectors * height;
        const auto *const own = weight + matrix * height * width;
        if (tiles.empty() || end - begin < group)
            by_rows<Weight>(own, x + matrix * vectors * width, sums, vectors, width, height, begin, end);
        else
            by_tiles<Weight>(own, tiles[matrix], sums, height, begin, end);
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
