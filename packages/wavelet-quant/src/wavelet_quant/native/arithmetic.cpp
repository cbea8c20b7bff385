// A few vectors times one large matrix, which is what decoding consists of: reading the matrix is all that takes time.
//
// Compiled once for each instruction set, with its flags and its name as SET. Nothing but that name may be visible to
// the linker: it keeps one copy of an inline function, and would choose the one that not every processor can run. So
// there is nothing of the standard library here, and memory comes from the caller.
//
// Four rows of the matrix are read at a time and multiplied with up to six vectors. For so few these rows are a quarter
// of the thread's share apart: four streams without gaps. More vectors take turns with a block of the matrix that stays in
// the cache.
//
// From about 12 vectors on, arithmetic is what takes time, and where one instruction does not multiply 16-bit numbers the
// lanes of a register are vectors instead: these lie in tiles, channel by channel, and each weight is multiplied with a
// whole tile, so that nothing is added across lanes.
//
// Both ways make the sums of one row and one vector in the same order, whatever else is computed with them: threads change
// no result, and neither do more vectors that are multiplied in the same way.

#include "instruction_set.h"

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bfloat16 numbers are taken out of words in little-endian order"
#endif

namespace {

#if defined(__AVX512F__)
constexpr long lanes = 16;
#elif defined(__AVX2__)
constexpr long lanes = 8;
#else
constexpr long lanes = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__) // 32 registers
constexpr int most_sharing = 6, rows_sharing = 4;
#else // 16
constexpr int most_sharing = 6, rows_sharing = 2;
#endif
constexpr bool tiling = lanes == 8; // measured: 16 lanes lose more where a tile is not full, and 4 gain nothing
constexpr long first_tiled = 12;
constexpr int tile_rows(int registers) { return registers == 3 ? 4 : registers == 2 ? 6 : 12; }
constexpr long tiled_rows = 24; // of the matrix, which stay in the cache for all tiles: a multiple of every tile_rows
constexpr int streams = 4;
constexpr long prefetch_bytes = 8192, written_ahead = 8; // vectors
constexpr int second_level = 2; // where prefetching goes: the first level of the cache is too small for it
constexpr long cached_bytes = 1 << 17, cached_piece = 1 << 12;
// Between prepared vectors: were they a multiple of 4096 bytes apart, they would share a few places of the cache.
constexpr long padding = 128;

using Floats = float __attribute__((vector_size(4 * lanes)));
using Words = uint32_t __attribute__((vector_size(4 * lanes)));
using Halves = uint16_t __attribute__((vector_size(2 * lanes)));

template <class Vector> Vector load(const void *from) {
    Vector result;
    __builtin_memcpy(&result, from, sizeof result);
    return result;
}
template <class Vector> void store(void *to, Vector vector) { __builtin_memcpy(to, &vector, sizeof vector); }

long smaller(long a, long b) { return a < b ? a : b; }

// The lanes of a vector of T put together.
template <class T, class Vector, class Function> T folded(const Vector &v, Function function) {
    typedef T Quad __attribute__((vector_size(16)));
    Quad quad = load<Quad>(&v);
    for (long i = 4; i < lanes; i += 4) quad = function(quad, load<Quad>(reinterpret_cast<const T *>(&v) + i));
    return function(function(quad[0], quad[2]), function(quad[1], quad[3]));
}
template <class T = float, class Vector> T total(const Vector &v) {
    return folded<T>(v, [](auto a, auto b) { return a + b; });
}
template <class T, class Vector> T greatest(const Vector &v) {
    return folded<T>(v, [](auto a, auto b) { return a > b ? a : b; });
}

// How the numbers of a type are multiplied: `step` of them are loaded as one Vectors, of the matrix and of x alike.
// `widen` and `narrow` convert `lanes` numbers in order.

struct Float32 {
    static constexpr long bytes = 4, step = lanes;
    static constexpr bool tiles = tiling;
    using Vectors = Floats;
    static Vectors loaded(const void *p) { return load<Floats>(p); }
    static Floats add(Floats sum, Vectors a, Vectors b) { return sum + a * b; }
    static Floats widen(const void *p) { return load<Floats>(p); }
    static void narrow(void *to, Floats v) { store(to, v); }
};

struct Pair {
    Floats even, odd;
};

// Not as a whole, which compilers would move through memory.
template <> Pair load<Pair>(const void *from) {
    return {load<Floats>(from), load<Floats>(static_cast<const char *>(from) + sizeof(Floats))};
}
template <> void store<Pair>(void *to, Pair pair) {
    store(to, pair.even);
    store(static_cast<char *>(to) + sizeof(Floats), pair.odd);
}

struct BFloat16 {
    static constexpr long bytes = 2, step = 2 * lanes;
    static Floats widen(const void *p) {
        return (Floats)(__builtin_convertvector(load<Halves>(p), Words) << 16);
    }
#if defined(__AVX512BF16__)
    static constexpr bool tiles = false;
    using Vectors = __m512bh;
    static Vectors loaded(const void *p) { return load<__m512bh>(p); }
    static Floats add(Floats sum, Vectors a, Vectors b) { return (Floats)_mm512_dpbf16_ps((__m512)sum, a, b); }
#else
    static constexpr bool tiles = tiling;
    using Vectors = Pair;
    static Vectors loaded(const void *p) {
        const Words words = load<Words>(p);
        return {(Floats)(words << 16), (Floats)(words & 0xffff0000u)};
    }
    static Floats add(Floats sum, Vectors a, Vectors b) { return sum + a.even * b.even + a.odd * b.odd; }
#endif
#if defined(__AVX512BF16__)
    static void narrow(void *to, Floats v) { store(to, _mm512_cvtneps_pbh((__m512)v)); }
#else
    static void narrow(void *to, Floats v) {
        const Words bits = (Words)v, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        store(to, __builtin_convertvector(v == v ? rounded : rounded * 0 + 0x7fc0u, Halves));
    }
#endif
};

struct Float16 {
    static constexpr long bytes = 2, step = lanes;
    static constexpr bool tiles = tiling;
    using Vectors = Floats;
    static Vectors loaded(const void *p) { return widen(p); }
    static Floats add(Floats sum, Vectors a, Vectors b) { return sum + a * b; }
#if defined(__AVX512F__)
    static Floats widen(const void *p) { return (Floats)_mm512_cvtph_ps(load<__m256i>(p)); }
    static void narrow(void *to, Floats v) { store(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__F16C__)
    static Floats widen(const void *p) { return (Floats)_mm256_cvtph_ps(load<__m128i>(p)); }
    static void narrow(void *to, Floats v) { store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
    using Own = __fp16 __attribute__((vector_size(2 * lanes)));
    static Floats widen(const void *p) { return __builtin_convertvector(load<Own>(p), Floats); }
    static void narrow(void *to, Floats v) { store(to, __builtin_convertvector(v, Own)); }
#else
    // The exponents differ by 112; scaling with floating-point numbers takes care of subnormal ones, and of rounding.
    static Floats widen(const void *p) {
        const Words bits = __builtin_convertvector(load<Halves>(p), Words);
        const Words magnitude = (Words)((Floats)((bits & 0x7fffu) << 13) * 0x1p112f);
        const Words special = (bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : magnitude;
        return (Floats)(special | (bits & 0x8000u) << 16);
    }
    static void narrow(void *to, Floats v) {
        const Words bits = (Words)v, sign = bits & 0x80000000u, twice = bits << 1, exponent = twice & 0xff000000u;
        const Words least = exponent < 0x71000000u ? exponent * 0 + 0x71000000u : exponent;
        const Floats scaled = ((Floats)(bits ^ sign) * 0x1p112f) * 0x1p-110f;
        const Words rounded = (Words)((Floats)((least >> 1) + 0x07800000u) + scaled);
        const Words number = ((rounded >> 13) & 0x7c00u) + (rounded & 0x0fffu);
        store(to, __builtin_convertvector(sign >> 16 | (v == v ? number : number * 0 + 0x7e00u), Halves));
    }
#endif
};

// The numbers of a row that fill no step, with zeros after them.
template <class Kind> typename Kind::Vectors padded(const char *from, long count) {
    char memory[Kind::step * Kind::bytes] = {};
    __builtin_memcpy(memory, from, count * Kind::bytes);
    return Kind::loaded(memory);
}

// Up to `lanes` numbers in order, with zeros after them.
template <class Kind> Floats ordered(const char *from, long count) {
    char memory[lanes * Kind::bytes] = {};
    __builtin_memcpy(memory, from, count * Kind::bytes);
    return Kind::widen(memory);
}

template <class Kind> long prepared_bytes(long width) {
    return (width + Kind::step - 1) / Kind::step * sizeof(typename Kind::Vectors) + padding;
}

template <class Kind> void prepare(const void *vector, long width, void *prepared) {
    const char *from = static_cast<const char *>(vector);
    char *to = static_cast<char *>(prepared);
    using Vectors = typename Kind::Vectors;
    const long whole = width / Kind::step;
    for (long i = 0; i < whole; i++)
        store<Vectors>(to + i * sizeof(Vectors), Kind::loaded(from + i * Kind::step * Kind::bytes));
    if (width % Kind::step)
        store<Vectors>(to + whole * sizeof(Vectors),
                       padded<Kind>(from + whole * Kind::step * Kind::bytes, width % Kind::step));
}

// In a step of `rows_sharing` rows: enough for two passes over a block.
template <class Kind> constexpr int prefetches = Kind::step * Kind::bytes * rows_sharing > 128 ? 2 : 1;

// A piece of some rows of the matrix and of the prepared vectors that they are multiplied with.
struct Piece {
    const char *row[streams], *vectors;
    long stride; // bytes from vector to vector
    long width;  // numbers
    bool first, last;
    // What is prefetched: `next` moves on by `advance` bytes for each step.
    const char *next;
    long advance;
};

// `rows` rows times `count` vectors: row r's sums with vector t are kept in sums[(t * streams + r) * lanes] from piece to
// piece, and their total goes to the same place in totals after the last one. Steady: there is one piece, of four streams
// that go on with it; otherwise the next block of the matrix is read from memory meanwhile.
template <class Kind, int rows, int count, bool steady>
void multiply_few(const Piece &piece, int first_row, Floats *sums, float *totals) {
    using Vectors = typename Kind::Vectors;
    const char *row[rows], *x = piece.vectors, *next = piece.next;
    const long stride = piece.stride, advance = piece.advance;
    Floats sum[rows][count];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        row[r] = piece.row[first_row + r];
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) sum[r][t] = steady || piece.first ? Floats{} : sums[(t * streams + r) * lanes];
    }
    for (long left = piece.width / Kind::step; left; left--) {
        Vectors weight[rows];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            weight[r] = Kind::loaded(row[r]);
            if (steady) __builtin_prefetch(row[r] + prefetch_bytes, 0, second_level);
            row[r] += Kind::step * Kind::bytes;
        }
        if (!steady)
#pragma GCC unroll 2
            for (int i = 0; i < prefetches<Kind>; i++) {
                __builtin_prefetch(next, 0, second_level);
                next += advance;
            }
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) {
            const Vectors vector = load<Vectors>(x + t * stride);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) sum[r][t] = Kind::add(sum[r][t], weight[r], vector);
        }
        x += sizeof(Vectors);
    }
    if (!steady && !piece.last) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) sums[(t * streams + r) * lanes] = sum[r][t];
        return;
    }
    if (const long left = piece.width % Kind::step) {
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const Vectors weight = padded<Kind>(row[r], left);
#pragma GCC unroll 8
            for (int t = 0; t < count; t++) sum[r][t] = Kind::add(sum[r][t], weight, load<Vectors>(x + t * stride));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int t = 0; t < count; t++) totals[(t * streams + r) * lanes] = total(sum[r][t]);
}

// Four rows times `count` vectors.
template <class Kind, int count, bool steady>
void multiply_streams(const Piece &piece, Floats *sums, float *totals) {
    // Up to two vectors leave even 16 registers free for all of them.
    constexpr int rows = count <= 2 ? streams : rows_sharing;
    for (int r = 0; r < streams; r += rows)
        multiply_few<Kind, rows, count, steady>(piece, r, sums + r * lanes, totals + r * lanes);
}

// The share of a normal distribution that lies below v, with the error function within 1e-6: x P(x^2) / Q(x^2) for |x| < 4,
// +1 and -1 beyond; coefficients as in Eigen's.
Floats normal_share(Floats v) {
    Floats x = v * 0.70710678f;
    x = x > 4.0f ? Floats{} + 4.0f : x;
    x = x < -4.0f ? Floats{} - 4.0f : x;
    const Floats y = x * x;
    const Floats p = -1.60960333262415e-02f +
                     y * (-2.95459980854025e-03f +
                          y * (-7.34990630326855e-04f +
                               y * (-5.69250639462346e-05f +
                                    y * (-2.10102402082508e-06f + y * (2.77068142495902e-08f + y * -2.72614225801306e-10f)))));
    const Floats q =
        -1.42647390514189e-02f +
        y * (-7.37332916720468e-03f + y * (-1.68282697438203e-03f + y * (-2.13374055278905e-04f + y * -1.45660718464996e-05f)));
    return 0.5f + 0.5f * (x * p / q);
}

Floats gelu(Floats v) { return v * normal_share(v); }

// e^v within 1e-6 of itself: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (its Taylor series); 0 below -87.
Floats exponential(Floats v) {
    v = v < -87.0f ? Floats{} - 87.5f : v;
    v = v > 88.0f ? Floats{} + 88.0f : v;
    const Floats shifted = v * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum has the whole number in its lowest bits
    const Floats n = shifted - 12582912.0f;
    const Floats r = v - n * 0.693359375f + n * 2.12194440e-4f;
    const Floats e = 1.0f + r * (1.0f + r * (0.5f + r * (1.66666667e-1f + r * (4.16666667e-2f + r * (8.33333333e-3f + r * 1.38888889e-3f)))));
    const Floats result = (Floats)((Words)e + ((Words)shifted << 23));
    return v < -87.0f ? Floats{} : v == v ? result : v;
}

// The results of `count` neighbouring rows of the matrix, from n on, for vector t.
template <class Kind> void finish(const Product &product, Floats sums, long t, long n, long count) {
    const bool whole = count == lanes;
    if (t + written_ahead < product.vectors)
        __builtin_prefetch(static_cast<char *>(product.out) + ((t + written_ahead) * product.height + n) * Kind::bytes, 1);
    const char *const bias = static_cast<const char *>(product.bias) + n * Kind::bytes;
    char *const out = static_cast<char *>(product.out) + (t * product.height + n) * Kind::bytes;
    if (product.bias) sums += whole ? Kind::widen(bias) : ordered<Kind>(bias, count);
    if (product.gelu) sums = gelu(sums);
    if (whole) return Kind::narrow(out, sums);
    char results[lanes * Kind::bytes];
    Kind::narrow(results, sums);
    __builtin_memcpy(out, results, count * Kind::bytes);
}

template <class Kind, bool steady>
constexpr void (*of_count[])(const Piece &, Floats *, float *) = {
    multiply_streams<Kind, 1, steady>, multiply_streams<Kind, 2, steady>, multiply_streams<Kind, 3, steady>,
    multiply_streams<Kind, 4, steady>, multiply_streams<Kind, 5, steady>, multiply_streams<Kind, 6, steady>};

template <class Kind>
void multiply(const Product &product, const void *prepared, long begin, long end, void *scratch) {
    using Vectors = typename Kind::Vectors;
    const long width = product.width, vectors = product.vectors, row_bytes = width * Kind::bytes;
    const long stride = prepared_bytes<Kind>(width);
    const long parts = (vectors + most_sharing - 1) / most_sharing;
    Floats *const sums = static_cast<Floats *>(scratch);
    float *const totals = reinterpret_cast<float *>(sums + most_sharing * streams * lanes);
    // So many rows of each stream stay in the cache until they are multiplied with all vectors.
    const long fitting = cached_bytes / streams / row_bytes, group = smaller(fitting < 1 ? 1 : fitting, lanes);
    const long piece_width = cached_piece / sizeof(Vectors) * Kind::step;
    const long block = parts == 1 ? end - begin : streams * group;
    for (long start = begin; start < end; start += block) {
        const long stop = smaller(start + block, end), length = (stop - start + streams - 1) / streams;
        for (long done = 0; done < length; done += group) {
            const long count = smaller(group, length - done);
            // The streams overlap where their number does not divide the rows: these are computed twice.
            long first[streams];
            for (int s = 0; s < streams; s++) first[s] = smaller(start + s * length, stop - length) + done;
            const auto row = [&](int s, long j) { return static_cast<const char *>(product.weight) + (first[s] + j) * row_bytes; };
            Piece piece;
            piece.stride = stride;
            for (long part = 0; part < parts; part++) {
                const long t = part * vectors / parts, sharing = (part + 1) * vectors / parts - t;
                const char *const x = static_cast<const char *>(prepared) + t * stride;
                float *const own = totals + t * streams * lanes;
                if (parts == 1) {
                    piece.width = width;
                    piece.vectors = x;
                    for (long j = 0; j < count; j++) {
                        for (int s = 0; s < streams; s++) piece.row[s] = row(s, j);
                        of_count<Kind, true>[sharing - 1](piece, sums + j, own + j);
                    }
                    continue;
                }
                // The next block comes into the cache while this one is multiplied.
                const long advance = Kind::step * Kind::bytes * rows_sharing / prefetches<Kind> / parts;
                piece.advance = advance;
                piece.next = row(0, 0) + block * row_bytes + part * (block * row_bytes / parts);
                for (long k = 0; k < width; k += piece_width) {
                    piece.width = smaller(piece_width, width - k);
                    piece.first = k == 0;
                    piece.last = k + piece_width >= width;
                    piece.vectors = x + k / Kind::step * sizeof(Vectors);
                    for (long j = 0; j < count; j++) {
                        for (int s = 0; s < streams; s++) piece.row[s] = row(s, j) + k * Kind::bytes;
                        of_count<Kind, false>[sharing - 1](piece, sums + j, own + j);
                        piece.next += piece.width / Kind::step * prefetches<Kind> * advance * (streams / rows_sharing);
                    }
                }
            }
            for (long t = 0; t < vectors; t++)
                for (int s = 0; s < streams; s++)
                    finish<Kind>(product, load<Floats>(totals + (t * streams + s) * lanes), t, first[s], count);
        }
    }
}

// How many registers of vectors of those that are left make a tile.
int tile_registers(long left) { return left == 1 ? 1 : left == 3 || left == 5 ? 3 : 2; }

long tiles_of(long vectors) { return (vectors + lanes - 1) / lanes; }

// The floats of a prepared vector, which are those that `loaded` gives, in the same order for the matrix and for x.
template <class Kind> long prepared_width(long width) { return (width + Kind::step - 1) / Kind::step * Kind::step; }

// The tiles of all prepared vectors, one after the other: for every channel the vectors side by side, zeros after the last.
void make_tiles(const char *prepared, long stride, long vectors, long width, float *to) {
    for (long done = 0; done < tiles_of(vectors);) {
        const long registers = tile_registers(tiles_of(vectors) - done), across = registers * lanes;
        const long first = done * lanes, count = smaller(across, vectors - first);
        const char *const from = prepared + first * stride;
        for (long k = 0; k < width; k++, to += across)
            for (long t = 0; t < across; t++)
                to[t] = t < count ? reinterpret_cast<const float *>(from + t * stride)[k] : 0;
        done += registers;
    }
}

// `rows` rows of floats, `width` apart, times one tile: the sum of row r and vector t goes to totals[t * tiled_rows + r].
template <int registers, int rows>
void multiply_tile(const float *weight, const float *tile, long width, float *totals, long count) {
    Floats sum[rows][registers];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) sum[r][v] = Floats{};
    for (long k = 0; k < width; k++, tile += registers * lanes) {
        Floats vectors[registers];
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) vectors[v] = load<Floats>(tile + v * lanes);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const float factor = weight[r * width + k];
#pragma GCC unroll 3
            for (int v = 0; v < registers; v++) sum[r][v] += factor * vectors[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) {
        float across[registers * lanes];
#pragma GCC unroll 3
        for (int v = 0; v < registers; v++) store(across + v * lanes, sum[r][v]);
        for (long t = 0; t < count; t++) totals[t * tiled_rows + r] = across[t];
    }
}

template <int registers>
void multiply_tile_rows(const float *weight, const float *tile, long width, long rows, float *totals, long count) {
    constexpr int together = tile_rows(registers);
    long r = 0;
    for (; r + together <= rows; r += together)
        multiply_tile<registers, together>(weight + r * width, tile, width, totals + r, count);
    for (; r < rows; r++) multiply_tile<registers, 1>(weight + r * width, tile, width, totals + r, count);
}

template <class Kind>
void multiply_tiled(const Product &product, const void *prepared, long begin, long end, float *scratch) {
    constexpr bool as_it_is = Kind::bytes == 4;
    const long vectors = product.vectors, width = as_it_is ? product.width : prepared_width<Kind>(product.width);
    float *const tiles = scratch, *const totals = tiles + tiles_of(vectors) * lanes * width;
    float *const converted = totals + vectors * tiled_rows;
    make_tiles(static_cast<const char *>(prepared), prepared_bytes<Kind>(product.width), vectors, width, tiles);
    for (long n = begin; n < end; n += tiled_rows) {
        const long rows = smaller(tiled_rows, end - n);
        const char *const from = static_cast<const char *>(product.weight) + n * product.width * Kind::bytes;
        const float *weight = reinterpret_cast<const float *>(from);
        if (!as_it_is) {
            for (long r = 0; r < rows; r++)
                prepare<Kind>(from + r * product.width * Kind::bytes, product.width, converted + r * width);
            weight = converted;
        }
        const float *tile = tiles;
        for (long done = 0; done < tiles_of(vectors);) {
            const int registers = tile_registers(tiles_of(vectors) - done);
            const long first = done * lanes, count = smaller(registers * lanes, vectors - first);
            float *const own = totals + first * tiled_rows;
            (registers == 1   ? multiply_tile_rows<1>
             : registers == 2 ? multiply_tile_rows<2>
                              : multiply_tile_rows<3>)(weight, tile, width, rows, own, count);
            tile += registers * lanes * width;
            done += registers;
        }
        for (long t = 0; t < vectors; t++)
            for (long r = 0; r < rows; r += lanes) {
                const long count = smaller(lanes, rows - r);
                finish<Kind>(product, ordered<Float32>(reinterpret_cast<const char *>(totals + t * tiled_rows + r), count), t, n + r, count);
            }
    }
}

template <class Kind> bool is_tiled(long vectors) { return Kind::tiles && vectors >= first_tiled; }

template <class Kind> long scratch(long vectors, long width) {
    if (is_tiled<Kind>(vectors))
        return (tiles_of(vectors) * lanes * prepared_width<Kind>(width) + vectors * tiled_rows +
                tiled_rows * prepared_width<Kind>(width)) *
               sizeof(float);
    return (most_sharing * lanes + vectors) * streams * sizeof(Floats);
}

template <class Function> auto of_type(Type type, Function function) {
    return type == float32 ? function(Float32()) : type == bfloat16 ? function(BFloat16()) : function(Float16());
}

long prepared_bytes(Type type, long width) {
    return of_type(type, [=](auto kind) { return prepared_bytes<decltype(kind)>(width); });
}

void prepare(Type type, const void *vector, long width, void *prepared) {
    of_type(type, [=](auto kind) { prepare<decltype(kind)>(vector, width, prepared); });
}

long scratch(Type type, long vectors, long width) {
    return of_type(type, [=](auto kind) { return scratch<decltype(kind)>(vectors, width); });
}

void multiply(const Product &product, const void *prepared, long begin, long end, void *scratch) {
    of_type(product.type, [&](auto kind) {
        using Kind = decltype(kind);
        if constexpr (Kind::tiles) {
            if (is_tiled<Kind>(product.vectors))
                return multiply_tiled<Kind>(product, prepared, begin, end, static_cast<float *>(scratch));
        }
        multiply<Kind>(product, prepared, begin, end, scratch);
    });
}

// Packed matrices. 16 rows lie together, word by word: a word of 32 bits has 4, 8 or 16 codes of 8, 4 or 2 bits of one row.
// Plane j of a word is its bits from bits * j on in each byte; byte i of it is the code of channel 4 j + i. Code c stands
// for (c - offset) times the scale of its group. x becomes integers with scales, so that all sums within a run of channels
// are integers, exact, and a row stays in its lane: there is nothing to add across lanes. Codes of 2 bits are doubled,
// because their offset is 1.5.
//
// These integers have 16 bits, with a scale for each vector. Where one instruction multiplies and adds bytes, more than
// `exact_vectors` vectors become integers of 8 bits, with a scale for each run: half as many instructions. Not where they
// are asked to be exact.

constexpr long packed_rows = 16, word_bytes = 4, line_bytes = packed_rows * word_bytes, parts_of_line = packed_rows / lanes;
constexpr long piece_channels = 2048; // of which 128 vectors stay in the second level of the cache
constexpr long chunk = 32; // channels of x that lie together
constexpr long exact_vectors = 8;

using Integers = int32_t __attribute__((vector_size(4 * lanes)));
using Shorts = uint16_t __attribute__((vector_size(4 * lanes)));

// The codes at bit `shift` of every byte, or every 16 bits; `ones` has a 1 for each of them in a word.
template <class Vector> Vector codes(Vector words, int bits, int shift, uint32_t ones) {
    const Vector mask = (Vector)(Words{} + (bits == 2 ? 6 : (1 << bits) - 1) * ones);
    if (bits == 2) return (shift ? words >> (shift - 1) : words << 1) & mask;
    return (words >> shift) & mask;
}

// How x is multiplied, up to `most` vectors together: as integers up to `largest`, of which `split` makes `words` words of
// every four channels, in runs of `run` channels where the matrix has no groups.

// 16 bits.
struct ExactSums {
    static constexpr bool rounded = false;
    static constexpr int words = 2;
    static constexpr long run = 512;        // 128 * 32512 * 512 is still an integer of 32 bits; sums on the way may wrap around
    static constexpr float largest = 32512; // 127 * 256: both bytes of such a number have 8 bits with a sign
};

#if defined(__AVX512VNNI__)
Words dot_bytes(Words sum, Words codes, uint32_t x) {
    return (Words)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(int(x)));
}

Words byte_codes(Words word, int bits, int j) { return bits == 8 ? word : codes(word, bits, bits * j, 0x01010101u); }

void store_bytes(Integers x, void *to) {
    using Bytes = int8_t __attribute__((vector_size(lanes)));
    store(to, __builtin_convertvector(x, Bytes));
}

// In two signed bytes, the upper one and the rest, four channels to a word: as many instructions as by 16 bits, but none
// that widen the codes.
struct FewSums : ExactSums {
    static constexpr int most = 4;
    static constexpr int blocks(int count) { return count <= 2 ? 4 : 2; }
    Words upper, lower;

    void start(uint32_t offset) {
        upper = Words{};
        lower = Words{} + offset;
    }
    void add(Words word, int bits, int j, const uint32_t *x) {
        const Words plane = byte_codes(word, bits, j);
        upper = dot_bytes(upper, plane, x[2 * j]);
        lower = dot_bytes(lower, plane, x[2 * j + 1]);
    }
    Floats total() const { return __builtin_convertvector((Integers)((upper << 8) + lower), Floats); }

    static void split(Integers x, uint32_t *words) {
        char upper[lanes], lower[lanes];
        store_bytes((x + 128) >> 8, upper);
        store_bytes(x, lower);
        for (long i = 0; i < lanes; i += 4) {
            __builtin_memcpy(words + i / 2, upper + i, 4);
            __builtin_memcpy(words + i / 2 + 1, lower + i, 4);
        }
    }
};

// 8 bits: a word for four channels.
struct ManySums {
    static constexpr bool rounded = true;
    static constexpr int most = 12; // sums in integers, and as many in floating point: more do not fit into the registers
    static constexpr int words = 1;
    static constexpr long run = 64;
    static constexpr float largest = 127;
    static constexpr int blocks(int) { return 1; }
    Words sum;

    void start(uint32_t offset) { sum = Words{} + offset; }
    void add(Words word, int bits, int j, const uint32_t *x) { sum = dot_bytes(sum, byte_codes(word, bits, j), x[j]); }
    Floats total() const { return __builtin_convertvector((Integers)sum, Floats); }
    static void split(Integers x, uint32_t *words) { store_bytes(x, words); }
};
#else
// In pairs, channels 0 and 2, and 1 and 3.
struct FewSums : ExactSums {
    static constexpr int most = lanes == 8 ? 4 : 2;
    static constexpr int blocks(int count) { return lanes == 8 && count == 1 ? 2 : 1; }
    Words sum;

    void start(uint32_t offset) { sum = Words{} + offset; }
    static Words pairs(Words weights, uint32_t x) {
#if defined(__AVX2__)
        return (Words)_mm256_madd_epi16((__m256i)weights, _mm256_set1_epi32(int(x)));
#elif defined(__SSE2__)
        return (Words)_mm_madd_epi16((__m128i)weights, _mm_set1_epi32(int(x)));
#else
        return (weights & 0xffffu) * uint32_t(int16_t(x)) + (weights >> 16) * uint32_t(int16_t(x >> 16));
#endif
    }
    void add(Words word, int bits, int j, const uint32_t *x) {
        const Words even = (Words)codes((Shorts)word, bits, bits * j, 0x00010001u);
        const Words odd = (Words)codes((Shorts)word, bits, bits * j + 8, 0x00010001u);
        sum += pairs(even, x[2 * j]) + pairs(odd, x[2 * j + 1]);
    }
    Floats total() const { return __builtin_convertvector((Integers)sum, Floats); }

    static void split(Integers x, uint32_t *words) {
        using Halfwords = int16_t __attribute__((vector_size(2 * lanes)));
        using Fours = uint64_t __attribute__((vector_size(2 * lanes)));
        const Fours fours = (Fours)__builtin_convertvector(x, Halfwords);
        store(words, (fours & 0xffff00000000ffffu) | (fours & 0xffff0000u) << 16 | (fours >> 16 & 0xffff0000u));
    }
};
using ManySums = FewSums;
#endif

template <bool few> struct ChosenSums { using Type = ManySums; };
template <> struct ChosenSums<true> { using Type = FewSums; };
template <int count> using SumsOf = typename ChosenSums<(count <= FewSums::most)>::Type; // of a part of `count` vectors
static_assert(!ManySums::rounded || (exact_vectors >= FewSums::most && (ManySums::most + 1) / 2 > FewSums::most));

template <class Sums> constexpr long chunk_words = chunk / 4 * Sums::words;

template <class Function> auto with_sums(const Packed &packed, Function function) {
    return packed.product.vectors > exact_vectors && !packed.exact ? function(ManySums()) : function(FewSums());
}

long line_channels(const Packed &packed) { return 32 / packed.bits; }
long lines(const Packed &packed) { return (packed.product.width + line_channels(packed) - 1) / line_channels(packed); }
long run_channels(const Packed &packed) {
    return packed.group ? packed.group : with_sums(packed, [](auto sums) { return sums.run; });
}
long runs(const Packed &packed) { return (packed.product.width + run_channels(packed) - 1) / run_channels(packed); }
long words_of_chunk(const Packed &packed) {
    return with_sums(packed, [](auto sums) { return chunk_words<decltype(sums)>; });
}
long prepared_words(const Packed &packed) { return (packed.product.width + chunk - 1) / chunk * words_of_chunk(packed); }

// Into how many parts the vectors of a product are divided, and where a part begins.
long packed_parts(const Packed &packed) {
    const long most = with_sums(packed, [](auto sums) { return long(sums.most); });
    return (packed.product.vectors + most - 1) / most;
}
long part_begin(const Packed &packed, long part) { return part * packed.product.vectors / packed_parts(packed); }

// A prepared part: the words of its vectors, chunk by chunk; what the offset adds in each run; and the scale in each run.
long prepared_packed_bytes(const Packed &packed) {
    const long words = prepared_words(packed) + 2 * runs(packed);
    const long parts = packed_parts(packed), most = (packed.product.vectors + parts - 1) / parts;
    return (most * words * word_bytes + 63) / 64 * 64 + padding;
}

// Vector `t` of `count` that are prepared together.
template <class Kind, class Sums>
void prepare_packed(const Packed &packed, const char *from, long t, long count, void *prepared) {
    const long width = packed.product.width, run = run_channels(packed);
    uint32_t *words = static_cast<uint32_t *>(prepared) + t * chunk_words<Sums>;
    int32_t *offsets = static_cast<int32_t *>(prepared) + prepared_words(packed) * count + t;
    float *scales = reinterpret_cast<float *>(offsets + runs(packed) * count);
    const auto values = [&](long k) {
        return k + lanes <= width ? Kind::widen(from + k * Kind::bytes) : ordered<Kind>(from + k * Kind::bytes, width - k);
    };
    const int32_t offset = packed.bits == 2 ? 3 : 1 << (packed.bits - 1);
    float unit, inverse;
    for (long start = 0; start < width; start += run, offsets += count, scales += count) {
        const long end = smaller(start + run, width);
        if (Sums::rounded || start == 0) {
            Words most = {};
            for (long k = start; k < (Sums::rounded ? end : width); k += lanes) {
                const Words magnitude = (Words)values(k) & 0x7fffffffu;
                most = magnitude > most ? magnitude : most;
            }
            const uint32_t bits = greatest<uint32_t>(most);
            float magnitude;
            __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
            const bool finite = bits < 0x7f800000u;
            unit = finite ? magnitude / Sums::largest : __builtin_nanf("");
            inverse = finite && unit >= 0x1p-126f ? Sums::largest / magnitude : 0;
        }
        *scales = packed.bits == 2 ? unit / 2 : unit;
        Integers sums = {};
        for (long k = start; k < end; words += count * chunk_words<Sums>)
            for (long i = 0; i < chunk; i += lanes, k += lanes) {
                const Floats scaled = k < width && inverse != 0 ? values(k) * inverse : Floats{};
                // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
                const Integers whole = __builtin_convertvector((scaled + 12582912.0f) - 12582912.0f, Integers);
                sums += whole;
                Sums::split(whole, words + i / 4 * Sums::words);
            }
        *offsets = -offset * total<int32_t>(sums);
    }
}

// Some runs of several blocks of 16 rows, and of the prepared vectors that they are multiplied with.
struct PackedPiece {
    const char *values[streams], *scales[streams];
    const uint32_t *x, *offsets;
    const float *units;
    long runs, run_lines, lines;
    bool grouped, first;
    long ahead; // bytes from what is multiplied to what is prefetched
};

// `blocks` blocks times `count` vectors; row i's sum with vector t is kept in sums[(t * streams + block) * packed_rows + i]
// from piece to piece.
template <int bits, class Scale, int blocks, int count>
void multiply_blocks(const PackedPiece &piece, int first, float *kept) {
    using Sums = SumsOf<count>;
    constexpr int planes = 8 / bits;
    constexpr long chunk_lines = chunk / 4 / planes;
    const char *values[blocks];
    const uint32_t *x = piece.x, *offsets = piece.offsets;
    const float *units = piece.units;
    Floats sum[blocks][parts_of_line][count];
#pragma GCC unroll 16
    for (int b = 0; b < blocks; b++) {
        values[b] = piece.values[first + b];
#pragma GCC unroll 16
        for (int h = 0; h < parts_of_line; h++)
#pragma GCC unroll 16
            for (int t = 0; t < count; t++)
                sum[b][h][t] = piece.first ? Floats{} : load<Floats>(kept + (t * streams + b) * packed_rows + h * lanes);
    }
    for (long run = 0; run < piece.runs; run++, offsets += count, units += count) {
        Sums sums[blocks][parts_of_line][count];
#pragma GCC unroll 16
        for (int b = 0; b < blocks; b++)
#pragma GCC unroll 16
            for (int h = 0; h < parts_of_line; h++)
#pragma GCC unroll 16
                for (int t = 0; t < count; t++) sums[b][h][t].start(offsets[t]);
        for (long left = smaller(piece.run_lines, piece.lines - run * piece.run_lines); left > 0; left -= chunk_lines) {
            for (long line = smaller(left, chunk_lines); line; line--, x += planes * Sums::words) {
#pragma GCC unroll 16
                for (int b = 0; b < blocks; b++) {
                    __builtin_prefetch(values[b] + piece.ahead, 0, second_level);
#pragma GCC unroll 16
                    for (int j = 0; j < planes; j++)
#pragma GCC unroll 16
                        for (int t = 0; t < count; t++)
#pragma GCC unroll 16
                            for (int h = 0; h < parts_of_line; h++)
                                sums[b][h][t].add(load<Words>(values[b] + h * sizeof(Words)), bits, j,
                                                  x + t * chunk_words<Sums>);
                    values[b] += line_bytes;
                }
            }
            x += (count - 1) * chunk_words<Sums>;
        }
        const long scales = piece.grouped ? run * packed_rows * Scale::bytes : 0;
#pragma GCC unroll 16
        for (int b = 0; b < blocks; b++)
#pragma GCC unroll 16
            for (int h = 0; h < parts_of_line; h++) {
                const Floats scale = Scale::widen(piece.scales[first + b] + scales + h * lanes * Scale::bytes);
#pragma GCC unroll 16
                for (int t = 0; t < count; t++) sum[b][h][t] += sums[b][h][t].total() * (Sums::rounded ? scale * units[t] : scale);
            }
    }
#pragma GCC unroll 16
    for (int b = 0; b < blocks; b++)
#pragma GCC unroll 16
        for (int h = 0; h < parts_of_line; h++)
#pragma GCC unroll 16
            for (int t = 0; t < count; t++) store(kept + (t * streams + b) * packed_rows + h * lanes, sum[b][h][t]);
}

// `used` blocks of four times `count` vectors.
template <int bits, class Scale, int count> void multiply_block_streams(const PackedPiece &piece, int used, float *kept) {
    constexpr int blocks = SumsOf<count>::blocks(count);
    for (int b = 0; b < used; b += blocks) multiply_blocks<bits, Scale, blocks, count>(piece, b, kept + b * packed_rows);
}

template <int bits, class Scale, int... count>
void multiply_block_streams(const PackedPiece &piece, int used, long vectors, float *kept) {
    ((vectors == count ? multiply_block_streams<bits, Scale, count>(piece, used, kept) : void()), ...);
}

template <int bits, class Scale> void multiply_packed(const Packed &packed, const void *prepared, long begin, long end, float *kept) {
    const long stride = prepared_packed_bytes(packed) / word_bytes, all_runs = runs(packed);
    const long all_words = prepared_words(packed), of_chunk = words_of_chunk(packed);
    const bool rounded = with_sums(packed, [](auto sums) { return sums.rounded; });
    const long parts = packed_parts(packed), line_count = lines(packed), block_bytes = line_count * line_bytes;
    const long run_scales = packed.group ? packed_rows * Scale::bytes : 0;
    const char *const values = static_cast<const char *>(packed.product.weight), *const scales = static_cast<const char *>(packed.scales);
    const uint32_t *const words = static_cast<const uint32_t *>(prepared);
    // As above: few vectors read four streams, more take turns with four neighbouring blocks, and with pieces of them.
    const long together = parts == 1 ? end - begin : streams;
    const long piece_runs = parts == 1 ? all_runs : piece_channels / run_channels(packed);
    PackedPiece piece;
    piece.run_lines = run_channels(packed) / line_channels(packed);
    piece.grouped = packed.group != 0;
    for (long start = begin; start < end; start += together) {
        const long stop = smaller(start + together, end), length = (stop - start + streams - 1) / streams;
        const int used = int(smaller(stop - start, streams));
        for (long done = 0; done < length; done++) {
            long block[streams];
            for (int s = 0; s < streams; s++) block[s] = smaller(start + s * length, stop - length) + done;
            for (long run = 0; run < all_runs; run += piece_runs) {
                const long line = run * piece.run_lines, next_line = line + piece_runs * piece.run_lines;
                piece.runs = smaller(piece_runs, all_runs - run);
                piece.lines = line_count - line;
                piece.first = run == 0;
                for (int s = 0; s < streams; s++) {
                    piece.values[s] = values + block[s] * block_bytes + line * line_bytes;
                    piece.scales[s] = scales + (block[s] * (packed.group ? all_runs : 1) * packed_rows * Scale::bytes) + run * run_scales;
                }
                piece.ahead = parts == 1               ? prefetch_bytes
                              : next_line < line_count ? (next_line - line) * line_bytes
                                                       : streams * block_bytes - line * line_bytes;
                for (long part = 0; part < parts; part++) {
                    const long t = part_begin(packed, part), count = part_begin(packed, part + 1) - t;
                    const uint32_t *const own = words + part * stride;
                    piece.x = own + run * run_channels(packed) / chunk * count * of_chunk;
                    piece.offsets = own + (all_words + run) * count;
                    piece.units = reinterpret_cast<const float *>(piece.offsets + all_runs * count);
                    float *const sums = kept + t * streams * packed_rows;
#if defined(__AVX512VNNI__)
                    multiply_block_streams<bits, Scale, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12>(piece, used, count, sums);
#else
                    multiply_block_streams<bits, Scale, 1, 2, 3, 4>(piece, used, count, sums);
#endif
                }
            }
            of_type(packed.product.type, [&](auto kind) {
                using Kind = decltype(kind);
                for (long part = 0; part < parts; part++) {
                    const long first = part_begin(packed, part), count = part_begin(packed, part + 1) - first;
                    const uint32_t *const units = words + part * stride + (all_words + all_runs) * count;
                    for (long t = 0; t < count; t++)
                        for (int s = 0; s < used; s++)
                            for (long h = 0; h < parts_of_line; h++) {
                                const long n = block[s] * packed_rows + h * lanes, left = packed.product.height - n;
                                const Floats sums = load<Floats>(kept + ((first + t) * streams + s) * packed_rows + h * lanes);
                                const Floats results = rounded ? sums : sums * reinterpret_cast<const float *>(units)[t];
                                if (left > 0) finish<Kind>(packed.product, results, first + t, n, smaller(lanes, left));
                            }
                }
            });
        }
    }
}

void prepare_packed(const Packed &packed, const void *vectors, long part, void *prepared) {
    const long begin = part_begin(packed, part), count = part_begin(packed, part + 1) - begin;
    of_type(packed.product.type, [&](auto kind) {
        using Kind = decltype(kind);
        for (long t = 0; t < count; t++) {
            const char *const from = static_cast<const char *>(vectors) + (begin + t) * packed.product.width * Kind::bytes;
            with_sums(packed, [&](auto sums) { prepare_packed<Kind, decltype(sums)>(packed, from, t, count, prepared); });
        }
    });
}

long packed_scratch(long vectors) { return vectors * streams * packed_rows * sizeof(float); }

void multiply_packed(const Packed &packed, const void *prepared, long begin, long end, void *scratch) {
    float *const totals = static_cast<float *>(scratch);
    of_type(packed.scale_type, [&](auto kind) {
        using Scale = decltype(kind);
        if (packed.bits == 8)
            multiply_packed<8, Scale>(packed, prepared, begin, end, totals);
        else if (packed.bits == 4)
            multiply_packed<4, Scale>(packed, prepared, begin, end, totals);
        else
            multiply_packed<2, Scale>(packed, prepared, begin, end, totals);
    });
}

// Within a register: sums of the numbers at i and i XOR stride, and at the higher place of the two their difference.
struct Butterfly {
    Words places; // i XOR stride
    Floats signs;

    explicit Butterfly(long stride) {
        for (long i = 0; i < lanes; i++) {
            places[i] = uint32_t(i ^ stride);
            signs[i] = i & stride ? -1.0f : 1.0f;
        }
    }

    Floats operator()(Floats v) const {
#if defined(__clang__)
        Floats exchanged;
        for (long i = 0; i < lanes; i++) exchanged[i] = v[places[i]];
#else
        const Floats exchanged = __builtin_shuffle(v, places);
#endif
        return exchanged + v * signs;
    }
};

template <class Kind> void walsh_hadamard(const void *x, void *out, long rows, long width, float *row) {
    const long bytes = Kind::bytes;
    const float scale = 1 / __builtin_sqrtf(float(width));
    const Butterfly once(1), twice(2), fourth(lanes > 4 ? 4 : 1), eighth(lanes > 8 ? 8 : 1);
    for (long r = 0; r < rows; r++) {
        const char *const from = static_cast<const char *>(x) + r * width * bytes;
        char *const to = static_cast<char *>(out) + r * width * bytes;
        for (long i = 0; i < width; i += lanes) store(row + i, Kind::widen(from + i * bytes) * scale);
        for (long stride = lanes; stride < width; stride *= 2)
            for (long block = 0; block < width; block += 2 * stride)
                for (long i = block; i < block + stride; i += lanes) {
                    const Floats a = load<Floats>(row + i), b = load<Floats>(row + i + stride);
                    store(row + i, a + b);
                    store(row + i + stride, a - b);
                }
        for (long i = 0; i < width; i += lanes) {
            Floats values = twice(once(load<Floats>(row + i)));
            if (lanes > 4) values = fourth(values);
            if (lanes > 8) values = eighth(values);
            Kind::narrow(to + i * bytes, values);
        }
    }
}

void walsh_hadamard(Type type, const void *x, void *out, long rows, long width, float *row) {
    of_type(type, [=](auto kind) { walsh_hadamard<decltype(kind)>(x, out, rows, width, row); });
}

#include "training.h"
#include "delta_rule.h"

unsigned read(const void *memory, long bytes) {
    const char *from = static_cast<const char *>(memory);
    constexpr long size = sizeof(Words);
    const long length = bytes / streams / size * size;
    Words sums[streams] = {};
    for (long i = 0; i < length; i += size)
#pragma GCC unroll 4
        for (int s = 0; s < streams; s++) {
            __builtin_prefetch(from + s * length + i + prefetch_bytes, 0, second_level);
            sums[s] += load<Words>(from + s * length + i);
        }
    const Words sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    unsigned result = 0;
    for (long i = 0; i < lanes; i++) result += sum[i];
    return result;
}

} // namespace

extern const InstructionSet SET = {prepared_bytes, prepare, scratch, multiply,
                                    packed_parts, prepared_packed_bytes, prepare_packed, packed_scratch, multiply_packed,
                                    walsh_hadamard, elementwise, cross_entropy, gelu_gradients, blend, blend_gradients, best_pairs_scratch, best_pairs,
                                    weight_gradients, table_gradients, delta_scratch, delta_rule, delta_gradients, read};
