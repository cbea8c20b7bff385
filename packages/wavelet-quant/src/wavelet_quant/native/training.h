// What training computes besides matrix products and transforms: activations, losses and memory reads, with their gradients.
// A part of arithmetic.cpp, inside its namespace.
#pragma once

// `some` numbers at a place, `lanes` or fewer, and where they go.
template <class Kind> Floats taken(const void *place, long some) {
    return some == lanes ? Kind::widen(place) : ordered<Kind>(static_cast<const char *>(place), some);
}
template <class Kind> void put(void *place, Floats values, long some) {
    if (some == lanes) return Kind::narrow(place, values);
    char numbers[lanes * Kind::bytes];
    Kind::narrow(numbers, values);
    __builtin_memcpy(place, numbers, some * Kind::bytes);
}

// out[i] = function(inputs[0][i], inputs[1][i], ...), each input and output a place in memory, `count` numbers in order.
template <class Kind, int inputs, int outputs, class Function>
void each(const void *const *from, void *const *to, long count, Function function) {
    for (long i = 0; i < count; i += lanes) {
        const long some = smaller(lanes, count - i);
        Floats given[inputs], results[outputs];
        for (int k = 0; k < inputs; k++) given[k] = taken<Kind>(static_cast<const char *>(from[k]) + i * Kind::bytes, some);
        function(given, results);
        for (int k = 0; k < outputs; k++) put<Kind>(static_cast<char *>(to[k]) + i * Kind::bytes, results[k], some);
    }
}

// The gradient of GELU at v.
Floats gelu_slope(Floats v) {
    // The distribution function by Abramowitz and Stegun's 7.1.26, within 1e-7: it needs the density.
    const Floats peak = exponential(-0.5f * v * v), t = 1.0f / (1.0f + 0.23164190f * (v < 0.0f ? -v : v));
    const Floats tail = t * (0.127414796f + t * (-0.142248368f + t * (0.710706871f + t * (-0.726576014f + t * 0.530702715f)))) * peak;
    return (v < 0.0f ? tail : 1.0f - tail) + v * (0.39894228f * peak);
}

void elementwise(Type type, Elementwise function, const void *const *from, void *const *to, long count) {
    of_type(type, [=](auto kind) {
        using Kind = decltype(kind);
        if (function == gelu_of)
            each<Kind, 1, 1>(from, to, count, [](const Floats *x, Floats *y) { y[0] = gelu(x[0]); });
        else if (function == gelu_gradient) // x: the gradient of the result, and what GELU was taken of
            each<Kind, 2, 1>(from, to, count, [](const Floats *x, Floats *y) { y[0] = x[0] * gelu_slope(x[1]); });
        else if (function == silu_product) // x: a factor, and what the SiLU is taken of that multiplies it
            each<Kind, 2, 1>(from, to, count,
                             [](const Floats *x, Floats *y) { y[0] = x[0] * x[1] / (1.0f + exponential(-x[1])); });
        else if (function == relu_squared)
            each<Kind, 1, 1>(from, to, count, [](const Floats *x, Floats *y) { y[0] = x[0] < 0.0f ? Floats{} : x[0] * x[0]; });
        else if (function == relu_squared_gradient) // x: the gradient of the result, and what was squared
            each<Kind, 2, 1>(from, to, count, [](const Floats *x, Floats *y) { y[0] = x[1] < 0.0f ? Floats{} : 2.0f * x[0] * x[1]; });
        else // x: the gradient of the product, and its two inputs
            each<Kind, 3, 2>(from, to, count, [](const Floats *x, Floats *y) {
                const Floats share = 1.0f / (1.0f + exponential(-x[2])), open = x[2] * share;
                y[0] = x[0] * open;
                y[1] = x[0] * x[1] * (share + open * (1.0f - share));
            });
    });
}

// Rows of logits become probabilities less one at the target, in place; losses[r] is the row's cross entropy.
template <class Kind>
void cross_entropy(void *logits, const long *targets, float *losses, long rows, long width, float soft_cap, float *row) {
    const long whole = width / lanes * lanes;
    float *const slopes = row + (width + 15) / 16 * 16; // of the capped logits
    for (long r = 0; r < rows; r++) {
        char *const numbers = static_cast<char *>(logits) + r * width * Kind::bytes;
        Floats highest = Floats{} - 3.4e38f, sum{};
        for (long i = 0; i < width; i += lanes) {
            Floats values = taken<Kind>(numbers + i * Kind::bytes, smaller(lanes, width - i));
            if (soft_cap != 0) {
                const Floats share = 1.0f - 2.0f / (exponential(values * (2 / soft_cap)) + 1.0f); // the hyperbolic tangent
                store(slopes + i, 1.0f - share * share);
                values = soft_cap * share;
            }
            store(row + i, values);
            if (i < whole) highest = values > highest ? values : highest;
        }
        float most = -3.4e38f;
        for (long i = 0; i < lanes; i++) most = highest[i] > most ? highest[i] : most;
        for (long i = whole; i < width; i++) most = row[i] > most ? row[i] : most;
        const float logit = row[targets[r]];
        for (long i = width; i < whole + (whole < width) * lanes; i++) row[i] = most - 1000.0f; // no part of the sum
        for (long i = 0; i < width; i += lanes) {
            const Floats part = exponential(load<Floats>(row + i) - most);
            store(row + i, part);
            sum += part;
        }
        const float all = total(sum), inverse = 1 / all;
        losses[r] = most + __builtin_logf(all) - logit;
        row[targets[r]] -= all;
        for (long i = 0; i < width; i += lanes) {
            Floats values = load<Floats>(row + i) * inverse;
            if (soft_cap != 0) values *= load<Floats>(slopes + i);
            put<Kind>(numbers + i * Kind::bytes, values, smaller(lanes, width - i));
        }
    }
}

void cross_entropy(Type type, void *logits, const long *targets, float *losses, long rows, long width, float soft_cap, float *row) {
    of_type(type, [=](auto kind) { cross_entropy<decltype(kind)>(logits, targets, losses, rows, width, soft_cap, row); });
}

// The first `some` of `lanes` sums.
void put_sums(float *to, Floats sums, long some) { __builtin_memcpy(to, &sums, some * sizeof(float)); }

// Channels begin to end.
template <class Kind> void gelu_gradients(const Gelus &gelus, long begin, long end) {
    const long row = gelus.width * Kind::bytes;
    for (long c = begin; c < end; c += lanes) {
        const long some = smaller(lanes, end - c), offset = c * Kind::bytes;
        const char *gradient = static_cast<const char *>(gelus.gradient) + offset, *x = static_cast<const char *>(gelus.x) + offset;
        char *to = static_cast<char *>(gelus.to_x) + offset;
        Floats sum{};
        for (long r = gelus.rows; r; r--, gradient += row, x += row, to += row) {
            const Floats result = gelus.scale * taken<Kind>(gradient, some) * gelu_slope(taken<Kind>(x, some));
            put<Kind>(to, result, some);
            sum += result;
        }
        put_sums(gelus.sums + c, sum, some);
    }
}

void gelu_gradients(const Gelus &gelus, long begin, long end) {
    of_type(gelus.type, [=](auto kind) { gelu_gradients<decltype(kind)>(gelus, begin, end); });
}

// function(number of look-backs), known to the compiler where there are few.
template <long count> struct Looks {
    static constexpr long known = count;
    long looks;
    operator long() const { return count ? count : looks; }
};
template <class Function> void of_looks(long looks, Function function) {
    if (looks == 1) return function(Looks<1>{looks});
    if (looks == 3) return function(Looks<3>{looks});
    function(Looks<0>{looks});
}

template <class Kind, class Count> void blend(const Blend &blend, Count looks, long begin, long end) {
    const long row = blend.width * Kind::bytes, length = blend.length, furthest = blend.nearest + looks - 1;
    const float *const weights = blend.weights;
    const float scale = blend.scale, sign = blend.sign;
    for (long text = 0; text < blend.texts; text++)
        for (long position = 0; position < length; position++)
            for (long c = begin; c < end; c += lanes) {
                const long some = smaller(lanes, end - c), at = (text * length + position) * row + c * Kind::bytes;
                Floats sum = sign * taken<Kind>(static_cast<const char *>(blend.other) + at, some);
                for (long j = 0; j < looks; j++)
                    if (furthest - j <= position)
                        sum += weights[j] * taken<Kind>(static_cast<const char *>(blend.rows) + at - (furthest - j) * row, some);
                put<Kind>(static_cast<char *>(blend.out) + at, scale * sum, some);
            }
}

void blend(const Blend &all, long begin, long end) {
    of_type(all.type, [=](auto kind) { of_looks(all.looks, [=](auto looks) { blend<decltype(kind)>(all, looks, begin, end); }); });
}

template <class Kind, class Count>
void blend_gradients(const Blend &blend, const BlendGradients &to, Count looks, long begin, long end) {
    constexpr long most = Count::known ? Count::known : most_looks;
    const long row = blend.width * Kind::bytes, length = blend.length, furthest = blend.nearest + looks - 1;
    const float *const weights = blend.weights;
    const float scale = blend.scale;
    for (long c = begin; c < end; c += lanes) {
        const long some = smaller(lanes, end - c);
        Floats products[most] = {}, gradients{}, others{};
        for (long text = 0; text < blend.texts; text++)
            for (long position = 0; position < length; position++) {
                const long at = (text * length + position) * row + c * Kind::bytes;
                const auto read = [=](const void *numbers, long rows) {
                    return taken<Kind>(static_cast<const char *>(numbers) + at + rows * row, some);
                };
                const Floats own = read(blend.out, 0), other = read(blend.other, 0);
                Floats sum = other;
                for (long j = 0; j < looks; j++) {
                    const long back = furthest - j;
                    if (position + back < length) sum += weights[j] * read(blend.out, back);
                    if (back <= position) products[j] += own * read(blend.rows, -back);
                }
                gradients += own;
                others += other;
                put<Kind>(static_cast<char *>(to.rows) + at, scale * sum, some);
            }
        float *const sums = to.sums + c;
        for (long j = 0; j < looks; j++) put_sums(sums + j * blend.width, products[j], some);
        put_sums(sums + looks * blend.width, gradients, some);
        put_sums(sums + (looks + 1) * blend.width, others, some);
    }
}

void blend_gradients(const Blend &all, const BlendGradients &to, long begin, long end) {
    of_type(all.type, [=](auto kind) {
        of_looks(all.looks, [=](auto looks) { blend_gradients<decltype(kind)>(all, to, looks, begin, end); });
    });
}

// Sorting `lanes` rows at once, a lane for each: a number of all rows lies in one register, its place in another.
struct Ranked {
    Floats key;
    Words place;
};

void exchange(Ranked &better, Ranked &worse) {
    const auto wrong = worse.key > better.key;
    const Ranked a = better, b = worse;
    better = {wrong ? b.key : a.key, wrong ? b.place : a.place};
    worse = {wrong ? a.key : b.key, wrong ? a.place : b.place};
}

// Makes a bitonic sequence of `count` numbers, a power of two, descend.
void descend(Ranked *numbers, long count) {
    for (long stride = count / 2; stride; stride /= 2)
        for (long i = 0; i < count; i++)
            if (!(i & stride)) exchange(numbers[i], numbers[i + stride]);
}

void sort(Ranked *numbers, long count) {
    for (long size = 2; size <= count; size *= 2)
        for (long block = 0; block < count; block += size) {
            for (long i = 0; i < size / 2; i++) exchange(numbers[block + i], numbers[block + size - 1 - i]);
            for (long half = block; half < block + size; half += size / 2) descend(numbers + half, size / 2);
        }
}

// The best `count` of `size` numbers, both powers of two and size at least count, come first in descending order.
void select(Ranked *numbers, long size, long count) {
    sort(numbers, count);
    for (long block = count; block < size; block += count) {
        sort(numbers + block, count);
        for (long i = 0; i < count; i++) exchange(numbers[i], numbers[block + count - 1 - i]);
        descend(numbers, count);
    }
}

long power_of_two(long least) {
    long power = 1;
    while (power < least) power *= 2;
    return power;
}

long best_pairs_scratch(const Pairs &pairs) {
    const long halves = power_of_two(pairs.halves), best = power_of_two(pairs.best);
    const long side = (pairs.side + halves - 1) / halves * halves, candidates = (pairs.candidates + best - 1) / best * best;
    return (2 * side + candidates) * long(sizeof(Ranked));
}

// Filled up with what is never chosen; numbers that are none are never chosen either.
void fill(Ranked *numbers, long from, long to) {
    for (long i = from; i < to; i++) numbers[i] = {Floats{} - __builtin_inff(), Words{}};
}

template <class Kind> void best_pairs(const Pairs &pairs, long begin, long end, void *scratch) {
    const long halves = power_of_two(pairs.halves), best = power_of_two(pairs.best);
    const long side = (pairs.side + halves - 1) / halves * halves, candidates = (pairs.candidates + best - 1) / best * best;
    Ranked *const half[2] = {static_cast<Ranked *>(scratch), static_cast<Ranked *>(scratch) + side};
    Ranked *const sums = static_cast<Ranked *>(scratch) + 2 * side;
    for (long row = begin; row < end; row += lanes) {
        const long rows = smaller(lanes, end - row);
        for (int h = 0; h < 2; h++) {
            for (long r = 0; r < lanes; r++) {
                const char *const scores =
                    static_cast<const char *>(pairs.scores[h]) + (row + (r < rows ? r : 0)) * pairs.side * Kind::bytes;
                for (long i = 0; i < pairs.side; i += lanes) {
                    const long some = smaller(lanes, pairs.side - i);
                    const Floats values = taken<Kind>(scores + i * Kind::bytes, some);
                    for (long j = 0; j < some; j++) reinterpret_cast<float *>(&half[h][i + j].key)[r] = values[j];
                }
            }
            for (long i = 0; i < pairs.side; i++) half[h][i].place = Words{} + uint32_t(i);
            fill(half[h], pairs.side, side);
            select(half[h], side, halves);
        }
        for (long i = 0; i < pairs.candidates; i++)
            sums[i] = {half[0][pairs.ranks[0][i]].key + half[1][pairs.ranks[1][i]].key, Words{} + uint32_t(i)};
        fill(sums, pairs.candidates, candidates);
        select(sums, candidates, best);
        for (long r = 0; r < rows; r++)
            for (long i = 0; i < pairs.best; i++) {
                const long candidate = reinterpret_cast<const uint32_t *>(&sums[i].place)[r];
                for (int h = 0; h < 2; h++)
                    pairs.keys[h][(row + r) * pairs.best + i] =
                        reinterpret_cast<const uint32_t *>(&half[h][pairs.ranks[h][candidate]].place)[r];
            }
    }
}

void best_pairs(const Pairs &pairs, long begin, long end, void *scratch) {
    of_type(pairs.type, [=](auto kind) { best_pairs<decltype(kind)>(pairs, begin, end, scratch); });
}

// The gradients of `reads` weights of each of the vectors begin to end.
void weight_gradients(const Reads &reads, long begin, long end) {
    for (long n = begin; n < end; n++)
        for (long r = n * reads.reads; r < (n + 1) * reads.reads; r++) {
            const float *const gradient = reads.gradient + n * reads.width, *const row = reads.table + reads.rows[r] * reads.width;
            Floats sum{};
            long c = 0;
            for (; c + lanes <= reads.width; c += lanes) sum += load<Floats>(gradient + c) * load<Floats>(row + c);
            float all = total(sum);
            for (; c < reads.width; c++) all += gradient[c] * row[c];
            reads.to_weights[r] = all;
        }
}

// Channels begin to end of the table's gradient, which is zero.
void table_gradients(const Reads &reads, long begin, long end) {
    for (long n = 0; n < reads.vectors; n++)
        for (long r = n * reads.reads; r < (n + 1) * reads.reads; r++) {
            const float *const gradient = reads.gradient + n * reads.width;
            float *const row = reads.to_table + reads.rows[r] * reads.width;
            const float weight = reads.weights[r];
            long c = begin;
            for (; c + lanes <= end; c += lanes) store(row + c, load<Floats>(row + c) + load<Floats>(gradient + c) * weight);
            for (; c < end; c++) row[c] += gradient[c] * weight;
        }
}
