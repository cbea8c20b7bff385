// What the library computes with one instruction set: arithmetic.cpp, compiled once for each of them.
#pragma once

enum Type { float32, bfloat16, float16 };

// out[t][n] = f(sum_k x[t][k] * weight[n][k] + bias[n]), f the identity or GELU, sums in float32; weight, bias (or null)
// and out are contiguous and of one type.
struct Product {
    Type type;
    const void *weight, *bias;
    bool gelu;
    void *out;
    long vectors, width, height;
};

// A product with a packed matrix (arithmetic.cpp says how it lies in memory): codes of 8, 4 or 2 bits, scales for groups of
// channels, or, with group 0, one for each row. exact: of many vectors, too, x is rounded as it is of few.
struct Packed {
    Product product; // its type is that of x, bias and out
    int bits;
    Type scale_type;
    const void *scales;
    long group;
    bool exact;
};

// Functions of corresponding numbers, for training: how many inputs and outputs each has, arithmetic.cpp says.
enum Elementwise { gelu_of, gelu_gradient, silu_product, silu_product_gradients, relu_squared, relu_squared_gradient };

// to_x = scale gradient GELU'(x) of rows (rows, width), and its sums over the rows, (width).
struct Gelus {
    Type type;
    const void *gradient, *x;
    float scale;
    void *to_x;
    float *sums;
    long rows, width;
};

constexpr long most_looks = 64;

// out_t = scale (sign other_t + sum_j weights_j rows_{t - nearest - looks + 1 + j}), rows before a text being zero. Shapes: rows,
// other and out (texts, length, width); at most most_looks weights.
struct Blend {
    Type type;
    const void *rows, *other;
    const float *weights;
    long looks, nearest;
    float scale, sign;
    void *out;
    long texts, length, width;
};

// With out holding gradients g and other holding gradients h: rows = scale (h + those that g gives to the rows), and sums
// (looks + 2, width), over all positions of g times the rows of each look-back, of g, and of h.
struct BlendGradients {
    void *rows;
    float *sums;
};

// Of the scores (rows, side) of two halves the best `halves` are ranked, and of the sums of candidates, pairs of ranks,
// the best `best` are chosen: keys[h] (rows, best) says which scores of half h they consist of.
struct Pairs {
    Type type;
    const void *scores[2];
    long side, halves;
    const long *ranks[2];
    long candidates, best;
    long *keys[2];
};

// Sums of `reads` rows of a table (any, width) with weights, for each vector: out[n] = sum_r weights[n][r] table[rows[n][r]],
// and the gradients that follow from those of the sums.
struct Reads {
    const float *gradient, *table, *weights;
    const long *rows;
    float *to_weights, *to_table;
    long vectors, reads, width;
};

// The gated delta rule for heads (heads, length, ...), all float32 and contiguous (wavelet_memory/gated_delta_rule.py).
// memory (heads, keys, values) is moved on; memories (heads, chunks, keys, values) gets what it was before each chunk, and
// corrections (heads, length, values) what was written. keys, values and chunk are multiples of 16.
struct DeltaRule {
    const float *q, *k, *v, *log_decay, *strength;
    float *outputs, *memory, *memories, *corrections;
    long length, keys, values, chunk;
};

// Gradients of the outputs and of the last memory, which becomes that of the first one; and those that they give.
struct DeltaGradients {
    const float *outputs;
    float *memory, *q, *k, *v, *log_decay, *strength;
};

struct InstructionSet {
    // Vectors are prepared once for the whole product: the bytes that a prepared one takes.
    long (*prepared_bytes)(Type type, long width);
    void (*prepare)(Type type, const void *vector, long width, void *prepared);
    // Bytes of memory that `multiply` needs, at a multiple of 64.
    long (*scratch)(Type type, long vectors, long width);
    // Rows begin to end of the matrix.
    void (*multiply)(const Product &product, const void *prepared, long begin, long end, void *scratch);
    // The same for packed matrices; begin and end count blocks of 16 rows. Vectors are prepared in parts, several together.
    long (*packed_parts)(const Packed &packed);
    long (*prepared_packed_bytes)(const Packed &packed);
    void (*prepare_packed)(const Packed &packed, const void *vectors, long part, void *prepared);
    long (*packed_scratch)(long vectors);
    void (*multiply_packed)(const Packed &packed, const void *prepared, long begin, long end, void *scratch);
    // Walsh-Hadamard transforms of contiguous rows, divided by the square root of their width, a power of two of at least
    // 16; memory for one row of floats comes from the caller.
    void (*walsh_hadamard)(Type type, const void *x, void *out, long rows, long width, float *row);
    void (*elementwise)(Type type, Elementwise function, const void *const *from, void *const *to, long count);
    // Losses of logits (rows, width) in nats, for targets from 0 to width - 1, and the logits' gradients in their place;
    // memory for two rows of floats, each filled up to a multiple of 64 bytes, comes from the caller. soft_cap: logits z become
    // soft_cap tanh(z / soft_cap) and the gradients are those of z; 0 for logits that stay as they are.
    void (*cross_entropy)(Type type, void *logits, const long *targets, float *losses, long rows, long width, float soft_cap,
                          float *row);
    // Channels begin to end.
    void (*gelu_gradients)(const Gelus &gelus, long begin, long end);
    void (*blend)(const Blend &blend, long begin, long end);
    void (*blend_gradients)(const Blend &blend, const BlendGradients &to, long begin, long end);
    // Rows begin to end; bytes of memory that this needs, at a multiple of 64.
    long (*best_pairs_scratch)(const Pairs &pairs);
    void (*best_pairs)(const Pairs &pairs, long begin, long end, void *scratch);
    void (*weight_gradients)(const Reads &reads, long begin, long end);
    void (*table_gradients)(const Reads &reads, long begin, long end);
    // The gated delta rule of one head, or its gradients, in so many bytes of memory.
    long (*delta_scratch)(const DeltaRule &rule);
    void (*delta_rule)(const DeltaRule &rule, long head, void *scratch);
    void (*delta_gradients)(const DeltaRule &rule, const DeltaGradients &to, long head, void *scratch);
    // Reads memory as fast as it can, and returns what depends on all of it.
    unsigned (*read)(const void *memory, long bytes);
};

extern const InstructionSet portable, avx2, avx512;
