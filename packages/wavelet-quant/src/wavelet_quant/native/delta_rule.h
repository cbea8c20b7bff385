// The gated delta rule of one head, in chunks, and its gradients: the formulas of wavelet_memory/gated_delta_rule.py, with
// everything of a chunk in the cache. Part of arithmetic.cpp, whose vectors it uses.
#pragma once

// The columns of products: keys, values and chunk are multiples of 16.
constexpr int product_rows = lanes == 16 ? 8 : 4;

template <int rows, int vectors, bool add>
inline void multiply_tile(long depth, const float *a, long row, long column, const float *b, long b_stride, float *out, long out_stride) {
    Floats sums[rows][vectors];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sums[r][v] = add ? load<Floats>(out + r * out_stride + v * lanes) : Floats{};
    for (long d = 0; d < depth; d++) {
        Floats right[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) right[v] = load<Floats>(b + d * b_stride + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float left = a[r * row + d * column];
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sums[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) store(out + r * out_stride + v * lanes, sums[r][v]);
}

// out (rows, columns) = or += a b, where a_{r,d} lies at a + r * row + d * column.
template <bool add>
void multiply(long rows, long columns, long depth, const float *a, long row, long column, const float *b, long b_stride, float *out,
              long out_stride) {
    for (long j = 0; j < columns; j += 2 * lanes) {
        const bool two = columns - j > lanes;
        long i = 0;
        for (; i + product_rows <= rows; i += product_rows)
            (two ? multiply_tile<product_rows, 2, add> : multiply_tile<product_rows, 1, add>)(
                depth, a + i * row, row, column, b + j, b_stride, out + i * out_stride + j, out_stride);
        for (; i < rows; i++)
            (two ? multiply_tile<1, 2, add> : multiply_tile<1, 1, add>)(depth, a + i * row, row, column, b + j, b_stride,
                                                                       out + i * out_stride + j, out_stride);
    }
}

// to (width, stride) = from (rows, width) turned, zero in the columns without a row.
void turn(const float *from, long rows, long width, float *to, long stride) {
    for (long w = 0; w < width; w++) {
        for (long r = 0; r < rows; r++) to[w * stride + r] = from[r * width + w];
        for (long r = rows; r < stride; r++) to[w * stride + r] = 0;
    }
}

void scale(const float *from, float factor, long width, float *to) {
    for (long i = 0; i < width; i += lanes) store(to + i, load<Floats>(from + i) * factor);
}

void add_scaled(const float *from, float factor, long width, float *to) {
    for (long i = 0; i < width; i += lanes) store(to + i, load<Floats>(to + i) + load<Floats>(from + i) * factor);
}

float dot(const float *a, const float *b, long width) {
    Floats sums = {};
    for (long i = 0; i < width; i += lanes) sums += load<Floats>(a + i) * load<Floats>(b + i);
    return total(sums);
}

// What a chunk of a head needs besides its rows.
struct Chunk {
    const DeltaRule &rule;
    long rows;
    const float *q, *k, *v, *strength;
    float *turned_keys, *decay, *system, *attention, *rows_of_keys, *rows_of_values; // scratch
    float *grown, *left;
    float *more; // scratch for the gradients

    static long size(long keys, long values, long chunk) {
        return chunk * (2 * keys + 3 * chunk + values + 2) + 3 * chunk * chunk + chunk * (3 * values + 2 * keys) + 3 * keys * values + 4 * chunk;
    }

    Chunk(const DeltaRule &rule, long head, long begin, float *scratch) : rule(rule), rows(smaller(rule.chunk, rule.length - begin)) {
        const long place = head * rule.length + begin, chunk = rule.chunk;
        q = rule.q + place * rule.keys, k = rule.k + place * rule.keys, v = rule.v + place * rule.values;
        strength = rule.strength + place;
        const auto take = [&](long count) {
            float *const taken = scratch;
            scratch += count;
            return taken;
        };
        turned_keys = take(rule.keys * chunk), decay = take(chunk * chunk), system = take(chunk * chunk), attention = take(chunk * chunk);
        rows_of_keys = take(chunk * rule.keys), rows_of_values = take(chunk * rule.values), grown = take(chunk), left = take(chunk);
        more = scratch;
        prepare(rule.log_decay + place);
    }

    // The decays between any two positions, and the matrices `system`, without the strengths, and `attention`.
    void prepare(const float *log_decay) {
        const long chunk = rule.chunk;
        float sum = 0;
        for (long i = 0; i < rows; i++) grown[i] = sum += log_decay[i];
        for (long i = rows; i < chunk; i++) grown[i] = sum;
        for (long i = 0; i < rows; i++)
            for (long j = 0; j <= i; j += lanes) {
                const Floats distance = grown[i] - load<Floats>(grown + j);
                store(decay + i * chunk + j, exponential(distance < 0.f ? distance : Floats{}));
            }
        for (long j = 0; j < chunk; j += lanes) {
            const Floats totals = load<Floats>(grown + j);
            store(left + j, exponential(sum - totals));
            store(grown + j, exponential(totals));
        }
        turn(k, rows, rule.keys, turned_keys, chunk);
        multiply<false>(rows, chunk, rule.keys, k, rule.keys, 1, turned_keys, chunk, system, chunk);
        multiply<false>(rows, chunk, rule.keys, q, rule.keys, 1, turned_keys, chunk, attention, chunk);
        for (long i = 0; i < rows; i++) {
            float *const s = system + i * chunk, *const a = attention + i * chunk, *const d = decay + i * chunk;
            for (long j = i + 1; j < chunk; j++) d[j] = 0;
            for (long j = 0; j < chunk; j += lanes) {
                store(s + j, load<Floats>(s + j) * load<Floats>(d + j));
                store(a + j, load<Floats>(a + j) * load<Floats>(d + j));
            }
            s[i] = 0;
        }
    }

    float kept() const { return grown[rows - 1]; }

    // Rows of q or k, each times its factor.
    const float *scaled(const float *from, const float *factors) {
        for (long i = 0; i < rows; i++) scale(from + i * rule.keys, factors[i], rule.keys, rows_of_keys + i * rule.keys);
        return rows_of_keys;
    }

    void forward(float *memory, float *corrections, float *outputs) {
        const long keys = rule.keys, values = rule.values, chunk = rule.chunk;
        multiply<false>(rows, values, keys, k, keys, 1, memory, values, corrections, values);
        for (long i = 0; i < rows; i++) {
            float *const row = corrections + i * values;
            scale(row, -grown[i], values, row);
            add_scaled(v + i * values, 1, values, row);
            scale(row, strength[i], values, row);
            for (long j = 0; j < i; j++) add_scaled(corrections + j * values, -strength[i] * system[i * chunk + j], values, row);
        }
        multiply<false>(rows, values, rows, attention, chunk, 1, corrections, values, outputs, values);
        multiply<true>(rows, values, keys, scaled(q, grown), keys, 1, memory, values, outputs, values);
        scale(memory, kept(), keys * values, memory);
        multiply<true>(keys, values, rows, scaled(k, left), 1, keys, corrections, values, memory, values);
    }

    // to_memory: of the memory after the chunk, then of that before it.
    void backward(const float *memory, const float *corrections, const float *to_outputs, float *to_memory, const DeltaGradients &to,
                  long place) {
        const long keys = rule.keys, values = rule.values, chunk = rule.chunk;
        float *const to_system = more, *const to_attention = to_system + chunk * chunk, *const symmetric = to_attention + chunk * chunk;
        float *const solved = symmetric + chunk * chunk, *const recalled = solved + chunk * values;
        float *const turned_corrections = recalled + chunk * values, *const to_writes = turned_corrections + chunk * values;
        float *const turned_memory = to_writes + chunk * keys, *const turned_to_memory = turned_memory + keys * values;
        float *const to_total = turned_to_memory + keys * values;
        float *const to_q = to.q + place * keys, *const to_k = to.k + place * keys, *const to_v = to.v + place * values;
        turn(corrections, rows, values, turned_corrections, chunk);
        turn(memory, keys, values, turned_memory, keys);
        turn(to_memory, keys, values, turned_to_memory, keys);

        multiply<false>(rows, values, rows, attention, 1, chunk, to_outputs, values, solved, values);
        multiply<true>(rows, values, keys, scaled(k, left), keys, 1, to_memory, values, solved, values);
        for (long i = rows - 1; i >= 0; i--)
            for (long j = i + 1; j < rows; j++)
                add_scaled(solved + j * values, -strength[j] * system[j * chunk + i], values, solved + i * values);
        multiply<false>(rows, chunk, values, to_outputs, values, 1, turned_corrections, chunk, to_attention, chunk);
        multiply<false>(rows, chunk, values, solved, values, 1, turned_corrections, chunk, to_system, chunk);
        multiply<false>(rows, values, keys, k, keys, 1, memory, values, recalled, values);
        multiply<false>(rows, keys, values, to_outputs, values, 1, turned_memory, keys, to_q, keys);
        multiply<false>(rows, keys, values, corrections, values, 1, turned_to_memory, keys, to_writes, keys);

        for (long i = 0; i < chunk; i++) to_total[i] = 0;
        for (long i = 0; i < rows; i++) {
            const float *const y = solved + i * values;
            const float b = strength[i], remembered = dot(y, recalled + i * values, values) * grown[i];
            float to_strength = dot(y, v + i * values, values) - remembered;
            to_total[i] -= b * remembered;
            scale(y, b, values, to_v + i * values);
            scale(y, -b * grown[i], values, rows_of_values + i * values);
            to_total[i] += grown[i] * dot(to_q + i * keys, q + i * keys, keys);
            scale(to_q + i * keys, grown[i], keys, to_q + i * keys);
            const float written = left[i] * dot(to_writes + i * keys, k + i * keys, keys);
            to_total[i] -= written;
            to_total[rows - 1] += written;
            scale(to_writes + i * keys, left[i], keys, to_k + i * keys);
            float *const to_s = to_system + i * chunk, *const to_a = to_attention + i * chunk;
            const float *const s = system + i * chunk, *const a = attention + i * chunk, *const d = decay + i * chunk;
            Floats weights = {}, exponents = {};
            for (long j = 0; j < chunk; j += lanes) { // above the diagonal s, a and d are zero
                const Floats of_s = Floats{} - load<Floats>(to_s + j) * load<Floats>(s + j);
                const Floats exponent = of_s * b + load<Floats>(to_a + j) * load<Floats>(a + j);
                weights += of_s;
                exponents += exponent;
                store(to_total + j, load<Floats>(to_total + j) - exponent);
                store(to_a + j, load<Floats>(to_a + j) * load<Floats>(d + j));
                store(to_s + j, load<Floats>(to_s + j) * load<Floats>(d + j) * -b);
            }
            to_total[i] += total(exponents);
            to.strength[place + i] = to_strength + total(weights);
            to_s[i] = 0;
        }
        for (long i = 0; i < rows; i++)
            for (long j = 0; j <= i; j++) symmetric[i * chunk + j] = symmetric[j * chunk + i] = to_system[i * chunk + j];

        multiply<true>(rows, keys, values, rows_of_values, values, 1, turned_memory, keys, to_k, keys);
        multiply<true>(rows, keys, rows, symmetric, chunk, 1, k, keys, to_k, keys);
        multiply<true>(rows, keys, rows, to_attention, 1, chunk, q, keys, to_k, keys);
        multiply<true>(rows, keys, rows, to_attention, chunk, 1, k, keys, to_q, keys);
        to_total[rows - 1] += kept() * dot(memory, to_memory, keys * values);
        scale(to_memory, kept(), keys * values, to_memory);
        multiply<true>(keys, values, rows, scaled(q, grown), 1, keys, to_outputs, values, to_memory, values);
        multiply<true>(keys, values, rows, k, 1, keys, rows_of_values, values, to_memory, values);
        float sum = 0;
        for (long i = rows - 1; i >= 0; i--) to.log_decay[place + i] = sum += to_total[i];
    }
};

long delta_scratch(const DeltaRule &rule) { return Chunk::size(rule.keys, rule.values, rule.chunk) * long(sizeof(float)); }

void delta_rule(const DeltaRule &rule, long head, void *scratch) {
    const long size = rule.keys * rule.values, chunks = (rule.length + rule.chunk - 1) / rule.chunk;
    float *const memory = rule.memory + head * size;
    for (long i = 0; i < chunks; i++) {
        const long begin = i * rule.chunk, place = (head * rule.length + begin) * rule.values;
        scale(memory, 1, size, rule.memories + (head * chunks + i) * size);
        Chunk(rule, head, begin, static_cast<float *>(scratch)).forward(memory, rule.corrections + place, rule.outputs + place);
    }
}

void delta_gradients(const DeltaRule &rule, const DeltaGradients &to, long head, void *scratch) {
    const long size = rule.keys * rule.values, chunks = (rule.length + rule.chunk - 1) / rule.chunk;
    for (long i = chunks - 1; i >= 0; i--) {
        const long begin = i * rule.chunk, place = head * rule.length + begin;
        Chunk(rule, head, begin, static_cast<float *>(scratch))
            .backward(rule.memories + (head * chunks + i) * size, rule.corrections + place * rule.values, to.outputs + place * rule.values,
                      to.memory + head * size, to, place);
    }
}
