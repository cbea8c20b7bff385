// The library's functions: they choose the arithmetic by instruction set, divide the work among threads, and hold memory.
// Compiled for every processor of the architecture.

#include "instruction_set.h"

#include <cstdint>
#include <vector>

namespace {

const InstructionSet *const sets[] = {
    &portable,
#ifdef AVX2
    &avx2,
#else
    nullptr,
#endif
#ifdef AVX512
    &avx512,
#else
    nullptr,
#endif
};

// Numbers to prepare; for fewer it takes longer to wait for the other threads.
constexpr long worth_sharing = 1 << 17;

// Memory that a thread keeps from call to call: fresh memory costs more than filling it.
class Memory {
    std::vector<char> bytes;

  public:
    // At least so many bytes, at a multiple of 64.
    char *of(long size) {
        if (long(bytes.size()) < size + 63) bytes.resize(size + 63);
        return reinterpret_cast<char *>((reinterpret_cast<std::uintptr_t>(bytes.data()) + 63) / 64 * 64);
    }
};

} // namespace

// Whether the library has the instruction set (0 portable, 1 AVX2, 2 AVX-512 with BF16 and VNNI), and the processor too.
extern "C" int has_instruction_set(int set) {
    if (!sets[set]) return false;
#ifdef __x86_64__
    if (set == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (set == 2)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") &&
               __builtin_cpu_supports("avx512vnni");
#endif
    return true;
}

// weight (matrices, height, width), x (matrices, vectors, width), out (matrices, vectors, height), bias (height) or null,
// all contiguous and of one type: 0 for float32, 1 for bfloat16, 2 for float16.
extern "C" void multiply(int set, int type, const void *weight, const void *x, const void *bias, int gelu, void *out,
                         long matrices, long vectors, long width, long height, long threads) {
    const InstructionSet &use = *sets[set];
    const long bytes = type == float32 ? 4 : 2, prepared_bytes = use.prepared_bytes(Type(type), width);
    const long count = matrices * vectors;
    static thread_local Memory prepared_memory;
    char *const prepared = prepared_memory.of(count * prepared_bytes);
    const long per_matrix = matrices < threads ? (threads + matrices - 1) / matrices : 1;
    const long shares = matrices * per_matrix;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count * width >= worth_sharing)
    for (long t = 0; t < count; t++)
        use.prepare(Type(type), static_cast<const char *>(x) + t * width * bytes, width, prepared + t * prepared_bytes);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Memory scratch;
        char *const own = scratch.of(use.scratch(Type(type), vectors, width));
#pragma omp for schedule(static) nowait
        for (long share = 0; share < shares; share++) {
            const long matrix = share / per_matrix, part = share % per_matrix;
            const long begin = part * height / per_matrix, end = (part + 1) * height / per_matrix;
            if (begin == end) continue;
            const Product product{Type(type),
                                  static_cast<const char *>(weight) + matrix * height * width * bytes,
                                  bias,
                                  gelu != 0,
                                  static_cast<char *>(out) + matrix * vectors * height * bytes,
                                  vectors,
                                  width,
                                  height};
            use.multiply(product, prepared + matrix * vectors * prepared_bytes, begin, end, own);
        }
    }
}

// values (matrices, blocks of 16 rows, lines, 16, 4) bytes; scales (matrices, blocks, groups or 1, 16) of their own type;
// the rest as above.
extern "C" void multiply_packed(int set, int type, int bits, int scale_type, const void *values, const void *scales,
                                const void *x, const void *bias, int gelu, void *out, long matrices, long vectors,
                                long width, long height, long group, long threads) {
    const InstructionSet &use = *sets[set];
    const long bytes = type == float32 ? 4 : 2, scale_bytes = scale_type == float32 ? 4 : 2;
    const long blocks = (height + 15) / 16, channels = 32 / bits, groups = group ? width / group : 1;
    const long matrix_bytes = blocks * ((width + channels - 1) / channels) * 64;
    const Packed of_all{{Type(type), nullptr, bias, gelu != 0, nullptr, vectors, width, height},
                        bits,
                        Type(scale_type),
                        nullptr,
                        group};
    const long prepared_bytes = use.prepared_packed_bytes(of_all), count = matrices * vectors;
    static thread_local Memory prepared_memory;
    char *const prepared = prepared_memory.of(count * prepared_bytes);
    const long per_matrix = matrices < threads ? (threads + matrices - 1) / matrices : 1;
    const long shares = matrices * per_matrix;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count * width >= worth_sharing)
    for (long t = 0; t < count; t++)
        use.prepare_packed(of_all, static_cast<const char *>(x) + t * width * bytes, prepared + t * prepared_bytes);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Memory scratch;
        char *const own = scratch.of(use.packed_scratch(vectors));
#pragma omp for schedule(static) nowait
        for (long share = 0; share < shares; share++) {
            const long matrix = share / per_matrix, part = share % per_matrix;
            const long begin = part * blocks / per_matrix, end = (part + 1) * blocks / per_matrix;
            if (begin == end) continue;
            Packed packed = of_all;
            packed.product.weight = static_cast<const char *>(values) + matrix * matrix_bytes;
            packed.product.out = static_cast<char *>(out) + matrix * vectors * height * bytes;
            packed.scales = static_cast<const char *>(scales) + matrix * blocks * groups * 16 * scale_bytes;
            use.multiply_packed(packed, prepared + matrix * vectors * prepared_bytes, begin, end, own);
        }
    }
}

// Read memory with all threads, as `multiply` does.
extern "C" unsigned read_bytes(int set, const void *memory, long bytes, long threads) {
    unsigned result = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : result) if (threads > 1)
    for (long share = 0; share < threads; share++) {
        const long begin = share * bytes / threads, end = (share + 1) * bytes / threads;
        result += sets[set]->read(static_cast<const char *>(memory) + begin, end - begin);
    }
    return result;
}
