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

// Vectors that are multiplied at a time, at most: of 2048 channels they stay in the second level of the cache.
constexpr long together = 128;

// Divides a product for several matrices among threads. Of `count` vectors parts(count) are prepared each by itself:
// prepare(first, count, part, to) with part `part` of those from vector `first` of all on, in prepared_bytes(count) bytes.
// multiply(matrix, first, count, prepared, begin, end, scratch): units begin to end of a matrix, times its vectors from
// `first` on.
template <class Parts, class Bytes, class Scratch, class Prepare, class Multiply>
void divide(long matrices, long vectors, long width, long units, long threads, Parts parts, Bytes prepared_bytes,
            Scratch scratch_bytes, Prepare prepare, Multiply multiply) {
    static thread_local Memory prepared_memory;
    const long per_matrix = matrices % threads ? threads : 1, shares = matrices * per_matrix;
    const long turns = (vectors + together - 1) / together;
    for (long turn = 0; turn < turns; turn++) { // never many vectors and then a few, which are multiplied in another way
        const long first = turn * vectors / turns, each = (turn + 1) * vectors / turns - first;
        const long count = parts(each), size = prepared_bytes(each);
        char *const prepared = prepared_memory.of(matrices * count * size);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && matrices * each * width >= worth_sharing)
        for (long i = 0; i < matrices * count; i++)
            prepare(i / count * vectors + first, each, i % count, prepared + i * size);
#pragma omp parallel num_threads(threads) if (threads > 1)
        {
            static thread_local Memory scratch;
            char *const own = scratch.of(scratch_bytes(each));
#pragma omp for schedule(static) nowait
            for (long share = 0; share < shares; share++) {
                const long matrix = share / per_matrix, part = share % per_matrix;
                const long begin = part * units / per_matrix, end = (part + 1) * units / per_matrix;
                if (begin < end)
                    multiply(matrix, first, each, prepared + matrix * count * size, begin, end, own);
            }
        }
    }
}

// Threads share the channels of rows, so that sums over rows are added up in the order of the rows.
template <class Work> void by_channels(long width, long rows, long threads, Work work) {
    const auto begin = [=](long share) { return share < threads ? share * (width / 16) / threads * 16 : width; };
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && rows * width >= worth_sharing)
    for (long share = 0; share < threads; share++)
        if (begin(share) < begin(share + 1)) work(begin(share), begin(share + 1));
}

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
    const Type of = Type(type);
    const long bytes = type == float32 ? 4 : 2;
    divide(
        matrices, vectors, width, height, threads, [](long count) { return count; },
        [&](long) { return use.prepared_bytes(of, width); }, [&](long count) { return use.scratch(of, count, width); },
        [&](long first, long, long i, void *to) {
            use.prepare(of, static_cast<const char *>(x) + (first + i) * width * bytes, width, to);
        },
        [&](long matrix, long first, long count, const void *prepared, long begin, long end, void *scratch) {
            const void *const rows = static_cast<const char *>(weight) + matrix * height * width * bytes;
            void *const results = static_cast<char *>(out) + (matrix * vectors + first) * height * bytes;
            use.multiply({of, rows, bias, gelu != 0, results, count, width, height}, prepared, begin, end, scratch);
        });
}

// values (matrices, blocks of 16 rows, lines, 16, 4) bytes; scales (matrices, blocks, groups or 1, 16) of their own type;
// exact: vectors are rounded as a single one is; the rest as above.
extern "C" void multiply_packed(int set, int type, int bits, int scale_type, const void *values, const void *scales,
                                const void *x, const void *bias, int gelu, void *out, long matrices, long vectors,
                                long width, long height, long group, int exact, long threads) {
    const InstructionSet &use = *sets[set];
    const long bytes = type == float32 ? 4 : 2, blocks = (height + 15) / 16, channels = 32 / bits;
    const long matrix_bytes = blocks * ((width + channels - 1) / channels) * 64;
    const long scales_bytes = blocks * (group ? width / group : 1) * 16 * (scale_type == float32 ? 4 : 2);
    const auto packed = [&](long count, const void *rows = nullptr, const void *scales_of_rows = nullptr, void *results = nullptr) {
        return Packed{{Type(type), rows, bias, gelu != 0, results, count, width, height}, bits, Type(scale_type), scales_of_rows, group, exact != 0};
    };
    divide(
        matrices, vectors, width, blocks, threads, [&](long count) { return use.packed_parts(packed(count)); },
        [&](long count) { return use.prepared_packed_bytes(packed(count)); }, use.packed_scratch,
        [&](long first, long count, long part, void *to) {
            use.prepare_packed(packed(count), static_cast<const char *>(x) + first * width * bytes, part, to);
        },
        [&](long matrix, long first, long count, const void *prepared, long begin, long end, void *scratch) {
            void *const results = static_cast<char *>(out) + (matrix * vectors + first) * height * bytes;
            use.multiply_packed(packed(count, static_cast<const char *>(values) + matrix * matrix_bytes,
                                       static_cast<const char *>(scales) + matrix * scales_bytes, results),
                                prepared, begin, end, scratch);
        });
}

// The Walsh-Hadamard transforms of `rows` contiguous rows, in the order of Sylvester.
extern "C" void walsh_hadamard(int set, int type, const void *x, void *out, long rows, long width, long threads) {
    const long bytes = type == float32 ? 4 : 2;
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * width >= worth_sharing)
    {
        static thread_local Memory memory;
        float *const row = reinterpret_cast<float *>(memory.of(width * 4));
#pragma omp for schedule(static)
        for (long share = 0; share < threads; share++) {
            const long begin = share * rows / threads, end = (share + 1) * rows / threads, offset = begin * width * bytes;
            sets[set]->walsh_hadamard(Type(type), static_cast<const char *>(x) + offset, static_cast<char *>(out) + offset,
                                      end - begin, width, row);
        }
    }
}

// A function of up to three inputs' and two outputs' corresponding numbers, all contiguous and of one type.
extern "C" void elementwise(int set, int type, int function, const void *a, const void *b, const void *c, void *d, void *e,
                            long count, long threads) {
    const long bytes = type == float32 ? 4 : 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && count >= worth_sharing)
    for (long share = 0; share < threads; share++) {
        // In whole registers, but for the last.
        const long begin = share * (count / 64) / threads * 64;
        const long end = share + 1 < threads ? (share + 1) * (count / 64) / threads * 64 : count;
        const auto at = [=](const void *place) { return place ? static_cast<const char *>(place) + begin * bytes : nullptr; };
        const void *const from[] = {at(a), at(b), at(c)};
        void *const to[] = {const_cast<char *>(at(d)), const_cast<char *>(at(e))};
        sets[set]->elementwise(Type(type), Elementwise(function), from, to, end - begin);
    }
}

// The losses of `rows` contiguous rows of logits, whose gradients take their place; see InstructionSet.
extern "C" void cross_entropy(int set, int type, void *logits, const long *targets, float *losses, long rows, long width,
                              float soft_cap, long threads) {
    const long bytes = type == float32 ? 4 : 2;
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * width >= worth_sharing)
    {
        static thread_local Memory memory;
        float *const row = reinterpret_cast<float *>(memory.of(2 * (width + 16) * 4));
#pragma omp for schedule(static)
        for (long share = 0; share < threads; share++) {
            const long begin = share * rows / threads, end = (share + 1) * rows / threads;
            sets[set]->cross_entropy(Type(type), static_cast<char *>(logits) + begin * width * bytes, targets + begin,
                                     losses + begin, end - begin, width, soft_cap, row);
        }
    }
}

// What `Gelus` says.
extern "C" void gelu_gradients(int set, int type, const void *gradient, const void *x, float scale, void *to_x, float *sums,
                               long rows, long width, long threads) {
    const Gelus gelus = {Type(type), gradient, x, scale, to_x, sums, rows, width};
    by_channels(width, rows, threads, [&](long begin, long end) { sets[set]->gelu_gradients(gelus, begin, end); });
}

// What `Blend` says, or where the last two addresses are not null, what `BlendGradients` does.
extern "C" void blend(int set, int type, const void *rows, const void *other, const float *weights, long looks, long nearest,
                      float scale, float sign, void *out, long texts, long length, long width, long threads, void *to_rows,
                      float *sums) {
    const Blend all = {Type(type), rows, other, weights, looks, nearest, scale, sign, out, texts, length, width};
    by_channels(width, texts * length, threads, [&](long begin, long end) {
        if (to_rows)
            sets[set]->blend_gradients(all, {to_rows, sums}, begin, end);
        else
            sets[set]->blend(all, begin, end);
    });
}

// What `Pairs` says, of contiguous scores and keys.
extern "C" void best_pairs(int set, int type, const void *scores_a, const void *scores_b, const long *ranks_a,
                           const long *ranks_b, long *keys_a, long *keys_b, long rows, long side, long halves,
                           long candidates, long best, long threads) {
    const Pairs pairs = {Type(type), {scores_a, scores_b}, side, halves, {ranks_a, ranks_b}, candidates, best, {keys_a, keys_b}};
#pragma omp parallel num_threads(threads) if (threads > 1 && rows * side >= worth_sharing / 8)
    {
        static thread_local Memory memory;
        void *const scratch = memory.of(sets[set]->best_pairs_scratch(pairs));
#pragma omp for schedule(static)
        for (long share = 0; share < threads; share++)
            sets[set]->best_pairs(pairs, share * rows / threads, (share + 1) * rows / threads, scratch);
    }
}

// The gradients of weighted sums of a table's rows, in float32; to_table is zero. Threads share the table's channels, so that
// every number is added up in the order of the vectors.
extern "C" void read_gradients(int set, const float *gradient, const float *table, const float *weights, const long *rows,
                               float *to_weights, float *to_table, long vectors, long reads, long width, long threads) {
    const Reads all = {gradient, table, weights, rows, to_weights, to_table, vectors, reads, width};
    const auto begin = [=](long share) { return share < threads ? share * (width / 16) / threads * 16 : width; };
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && vectors * reads * width >= worth_sharing)
    for (long share = 0; share < threads; share++) {
        sets[set]->weight_gradients(all, share * vectors / threads, (share + 1) * vectors / threads);
        sets[set]->table_gradients(all, begin(share), begin(share + 1));
    }
}

// The gated delta rule, and its gradients where the last seven addresses are not null; see DeltaRule and DeltaGradients.
extern "C" void delta_rule(int set, const float *q, const float *k, const float *v, const float *log_decay, const float *strength,
                           float *outputs, float *memory, float *memories, float *corrections, long heads, long length, long keys,
                           long values, long chunk, long threads, const float *to_outputs, float *to_memory, float *to_q, float *to_k,
                           float *to_v, float *to_log_decay, float *to_strength) {
    const DeltaRule rule = {q, k, v, log_decay, strength, outputs, memory, memories, corrections, length, keys, values, chunk};
    const DeltaGradients to = {to_outputs, to_memory, to_q, to_k, to_v, to_log_decay, to_strength};
    const InstructionSet &use = *sets[set];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        static thread_local Memory memory_of_thread;
        char *const scratch = memory_of_thread.of(use.delta_scratch(rule));
#pragma omp for schedule(static)
        for (long head = 0; head < heads; head++)
            if (to_outputs)
                use.delta_gradients(rule, to, head, scratch);
            else
                use.delta_rule(rule, head, scratch);
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
