// Products of random shapes by the native library, compared with sums in double precision, on buffers without a byte to
// spare; built with sanitizers by test_native_library.py. Arguments: how many shapes, seed.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

extern "C" int has_instruction_set(int set);
extern "C" void multiply(int set, int type, const void *weight, const void *x, const void *bias, int gelu, void *out,
                         long matrices, long vectors, long width, long height, long threads);
extern "C" void multiply_packed(int set, int type, int bits, int scale_type, const void *values, const void *scales,
                                const void *x, const void *bias, int gelu, void *out, long matrices, long vectors,
                                long width, long height, long group, int exact, long threads);
extern "C" unsigned read_bytes(int set, const void *memory, long bytes, long threads);

static std::mt19937 random_numbers;

static long draw(long least, long most) { return std::uniform_int_distribution<long>(least, most)(random_numbers); }

// Exact in all types.
struct Numbers {
    int type;
    std::unique_ptr<char[]> bytes;

    Numbers(int type, long count) : type(type), bytes(new char[count * size()]) {}

    long size() const { return type == 0 ? 4 : 2; }

    void set(long i, float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint32_t half = value == 0 ? 0 : ((bits >> 16) & 0x8000) | ((((bits >> 23) & 255) - 112) << 10) | ((bits >> 13) & 1023);
        const uint32_t stored = type == 0 ? bits : type == 1 ? bits >> 16 : half;
        std::memcpy(&bytes[i * size()], &stored, size());
    }

    // Small integers and halves of them.
    void fill(long count) {
        for (long i = 0; i < count; i++) set(i, draw(-4, 4) * 0.5f);
    }

    // Integers of 8 bits, the greatest in every run of channels, in 64ths: kernels that round x to integers change none.
    void fill_rows(long count, long width) {
        for (long i = 0; i < count; i++) set(i, (i % width % 32 ? draw(-127, 127) : draw(0, 1) ? 127 : -127) / 64.0f);
    }

    double operator[](long i) const {
        uint32_t bits = 0;
        std::memcpy(&bits, &bytes[i * size()], size());
        if (type == 1) bits <<= 16;
        if (type == 2) {
            const int exponent = (bits >> 10) & 31;
            const double magnitude = exponent ? std::ldexp(1024 + (bits & 1023), exponent - 25) : std::ldexp(bits & 1023, -24);
            return bits & 0x8000 ? -magnitude : magnitude;
        }
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

static bool right(int set, int type) {
    const long matrices = draw(1, 3), vectors = draw(1, draw(0, 9) ? 14 : 70), width = draw(1, draw(0, 9) ? 150 : 5000),
               height = draw(1, draw(0, 9) ? 40 : 200);
    const bool has_bias = draw(0, 1), gelu = draw(0, 3) == 0;
    Numbers weight(type, matrices * height * width), x(type, matrices * vectors * width), bias(type, height);
    weight.fill(matrices * height * width);
    x.fill(matrices * vectors * width);
    bias.fill(height);
    Numbers out(type, matrices * vectors * height), again(type, matrices * vectors * height);
    const void *const given = has_bias ? bias.bytes.get() : nullptr;
    multiply(set, type, weight.bytes.get(), x.bytes.get(), given, gelu, out.bytes.get(), matrices, vectors, width, height, 1);
    multiply(set, type, weight.bytes.get(), x.bytes.get(), given, gelu, again.bytes.get(), matrices, vectors, width, height, draw(2, 4));
    read_bytes(set, weight.bytes.get(), matrices * height * width * weight.size(), draw(1, 3));
    bool good = std::memcmp(out.bytes.get(), again.bytes.get(), matrices * vectors * height * out.size()) == 0;
    for (long m = 0; m < matrices; m++)
        for (long t = 0; t < vectors; t++)
            for (long n = 0; n < height; n++) {
                double sum = has_bias ? bias[n] : 0;
                for (long k = 0; k < width; k++) sum += x[(m * vectors + t) * width + k] * weight[(m * height + n) * width + k];
                if (gelu) sum *= 0.5 * std::erfc(-sum * std::sqrt(0.5));
                const double tolerance = type == 0 ? 1e-5 : type == 1 ? 4e-3 : 6e-4;
                good = good && std::fabs(out[(m * vectors + t) * height + n] - sum) <= tolerance * (1 + std::fabs(sum));
            }
    if (!good)
        std::printf("instruction set %d, type %d: %ld matrices %ld x %ld, %ld vectors\n", set, type, matrices, height, width, vectors);
    return good;
}

static bool packed_right(int set, int type) {
    const int bits = 2 << draw(0, 2), scale_type = int(draw(0, 2));
    const long group = draw(0, 1) ? 32 << draw(0, 2) : 0, width = group ? group * draw(1, draw(0, 9) ? 5 : 40) : draw(1, draw(0, 9) ? 150 : 5000);
    const long matrices = draw(1, 2), vectors = draw(1, draw(0, 9) ? 20 : 70), height = draw(1, 150), channels = 32 / bits;
    const long blocks = (height + 15) / 16, words = (width + channels - 1) / channels, groups = group ? width / group : 1;
    const long value_bytes = matrices * blocks * words * 64;
    std::unique_ptr<unsigned char[]> values(new unsigned char[value_bytes]);
    for (long i = 0; i < value_bytes; i++) values[i] = static_cast<unsigned char>(draw(0, 255));
    Numbers scales(scale_type, matrices * blocks * groups * 16), x(type, matrices * vectors * width), bias(type, height);
    scales.fill(matrices * blocks * groups * 16);
    x.fill_rows(matrices * vectors * width, width);
    bias.fill(height);
    Numbers out(type, matrices * vectors * height), again(type, matrices * vectors * height);
    const void *const given = draw(0, 1) ? bias.bytes.get() : nullptr;
    const int exact = int(draw(0, 1));
    multiply_packed(set, type, bits, scale_type, values.get(), scales.bytes.get(), x.bytes.get(), given, 0, out.bytes.get(),
                    matrices, vectors, width, height, group, exact, 1);
    multiply_packed(set, type, bits, scale_type, values.get(), scales.bytes.get(), x.bytes.get(), given, 0, again.bytes.get(),
                    matrices, vectors, width, height, group, exact, draw(2, 4));
    bool good = std::memcmp(out.bytes.get(), again.bytes.get(), matrices * vectors * height * out.size()) == 0;
    const double offset = bits == 2 ? 1.5 : 1 << (bits - 1);
    for (long m = 0; m < matrices; m++)
        for (long t = 0; t < vectors; t++)
            for (long n = 0; n < height; n++) {
                const long block = m * blocks + n / 16;
                double sum = given ? bias[n] : 0, most = 0;
                for (long k = 0; k < width; k++) {
                    const long channel = k % channels;
                    const int byte = values[((block * words + k / channels) * 16 + n % 16) * 4 + channel % 4];
                    const int code = (byte >> (bits * (channel / 4))) & ((1 << bits) - 1);
                    const double weight = (code - offset) * scales[(block * groups + (group ? k / group : 0)) * 16 + n % 16];
                    sum += weight * x[(m * vectors + t) * width + k];
                    most += std::fabs(weight);
                }
                const double tolerance = most * 4e-6 + (type == 0 ? 1e-5 : type == 1 ? 4e-3 : 6e-4) * (1 + std::fabs(sum));
                const bool overflown = type == 2 && std::fabs(sum) > 65000;
                good = good && (overflown || std::fabs(out[(m * vectors + t) * height + n] - sum) <= tolerance);
            }
    if (!good)
        std::printf("instruction set %d, type %d, %d bits, group %ld: %ld matrices %ld x %ld, %ld vectors\n", set, type, bits,
                    group, matrices, height, width, vectors);
    return good;
}

int main(int, char **arguments) {
    const long shapes = std::atol(arguments[1]);
    random_numbers.seed(std::atol(arguments[2]));
    long wrong = 0;
    for (long i = 0; i < shapes; i++)
        for (int set = 0; set < 3; set++)
            if (has_instruction_set(set)) wrong += !right(set, int(i % 3)) + !packed_right(set, int(i % 3));
    std::printf("%ld of %ld shapes are wrong\n", wrong, shapes);
    return wrong != 0;
}
