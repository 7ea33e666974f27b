// Causal blocks at one position after another, reading each weight once and each key and value once. decoding.py says the law and
// positions.py builds it, once for numbers kept in bf16 and, with FLOAT32, once for float; they are computed with in float.
//
// A weight (out, in) lies in groups of 16 outputs, and of a group two inputs at a time: (groups, in / 2, 16, 2), or in float
// (groups, in / 2, 2, 16). So 16 outputs are summed in one vector that is never summed up itself, and memory is read from one end
// to the other. Keys lie in the same way, 16 positions for 16 outputs; values lie (positions, width). Both come in chunks of 64
// positions.

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "../core/numbers.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

constexpr i64 LANES = 16, CHUNK = 64, MOST = 8;  // of a vector; positions of a chunk; rows taken at a time
constexpr i64 TILE = 2 * LANES;                  // numbers that a vector of pairs holds
typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));

static inline Vector load(const float* x) { return *(const Vector*)x; }
static inline void store(float* x, Vector v) { *(Vector*)x = v; }

// A tile: 16 pairs of numbers as they are kept. From a pair's first number to the next pair's, and to its second.
#if defined(FLOAT32)
typedef float Stored;
struct Pairs {
    Vector one, two;
};
static inline Pairs pairs(const Stored* x) { return {load(x), load(x + LANES)}; }
static inline Vector first(const Pairs& x) { return x.one; }
static inline Vector second(const Pairs& x) { return x.two; }
constexpr i64 NEXT = 1, SECOND = LANES;
#else
typedef bf16 Stored;
typedef uint32_t Pairs __attribute__((vector_size(64), aligned(4), may_alias));
static inline Pairs pairs(const Stored* x) { return *(const Pairs*)x; }
static inline Vector first(Pairs x) { return (Vector)(x << 16); }           // the first number of each pair, widened
static inline Vector second(Pairs x) { return (Vector)(x & 0xffff0000u); }  // and the second
constexpr i64 NEXT = 2, SECOND = 1;
#endif
static inline float total(Vector v) {
    float s = 0;
    for (i64 j = 0; j < LANES; j++) s += v[j];
    return s;
}
static inline i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }

// What layers read. AMD's processors multiply pairs of bf16 at twice the rate of float; Intel's at half of it, tiles apart.
#if defined(__AVX512BF16__) && defined(AMD) && !defined(FLOAT32)
typedef bf16 Number;
static inline void add(Vector& s, Pairs w, const Number* x) {
    int both;
    std::memcpy(&both, x, 4);
    s = (Vector)_mm512_dpbf16_ps((__m512)s, (__m512bh)w, (__m512bh)_mm512_set1_epi32(both));
}
#else
typedef float Number;
static inline void add(Vector& s, Pairs w, const Number* x) {
    s += first(w) * x[0];
    s += second(w) * x[1];
}
#endif

// 16 sums of ROWS rows: out[r] = sum over inputs of w x[r]. `half` pairs of inputs; rows are `apart` numbers from each other.
template <int ROWS> static inline void sums(const Stored* w, const Number* x, i64 apart, i64 half, Vector* out) {
    constexpr int WAYS = ROWS == 1 ? 8 : ROWS == 2 ? 4 : ROWS < 5 ? 2 : 1;  // sums that do not wait for each other
    Vector s[WAYS][ROWS] = {};
    i64 j = 0;
    for (; j + WAYS <= half; j += WAYS)
#pragma GCC unroll 8
        for (int u = 0; u < WAYS; u++) {
            const Pairs p = pairs(w + (j + u) * TILE);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) add(s[u][r], p, x + r * apart + 2 * (j + u));
        }
    for (; j < half; j++)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) add(s[0][r], pairs(w + j * TILE), x + r * apart + 2 * j);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        out[r] = s[0][r];
#pragma GCC unroll 8
        for (int u = 1; u < WAYS; u++) out[r] += s[u][r];
    }
}

static inline void some_sums(i64 rows, const Stored* w, const Number* x, i64 apart, i64 half, Vector* out) {
    switch (rows) {
        case 1: return sums<1>(w, x, apart, half, out);
        case 2: return sums<2>(w, x, apart, half, out);
        case 3: return sums<3>(w, x, apart, half, out);
        case 4: return sums<4>(w, x, apart, half, out);
        case 5: return sums<5>(w, x, apart, half, out);
        case 6: return sums<6>(w, x, apart, half, out);
        case 7: return sums<7>(w, x, apart, half, out);
        default: return sums<8>(w, x, apart, half, out);
    }
}

enum class Then { NOTHING, SILU, ADDED };
struct Layer {
    const Stored* weight;
    const float* bias;  // or null; padded as the outputs are
    i64 in, out;
};

// One thread's share of the outputs of a layer over all rows. x and y lie in rows of numbers padded to multiples of 16, with zeros.
template <Then THEN, class Y> static void product(const Layer& l, i64 rows, const Number* x, Y* y, i64 rank, i64 threads) {
    const i64 groups = up(l.out, LANES) / LANES, half = (l.in + 1) / 2, xs = up(l.in, LANES), ys = groups * LANES;
    for (i64 g = groups * rank / threads; g < groups * (rank + 1) / threads; g++)
        for (i64 r = 0; r < rows; r += MOST) {
            Vector found[MOST];
            const i64 taken = std::min(rows - r, MOST);
            some_sums(taken, l.weight + g * half * TILE, x + r * xs, xs, half, found);
            for (i64 t = 0; t < taken; t++) {
                Y* at = y + (r + t) * ys + g * LANES;
                const Vector v = l.bias ? found[t] + load(l.bias + g * LANES) : found[t];
                for (i64 j = 0; j < LANES; j++) {
                    float u = THEN == Then::ADDED ? wide(at[j]) + v[j] : THEN == Then::SILU ? least(v[j]) : v[j];
                    put(at[j], THEN == Then::SILU ? u * sigmoid(u) : u);
                }
            }
        }
}

// y = (x - mean) / deviation, times `scale`, and `shift`
template <class Y> static void normal(const float* x, Y* y, i64 n, const float* scale, const float* shift) {
    Vector s = {}, q = {};
    i64 j = 0;
    float mean = 0, square = 0;
    for (; j + LANES <= n; j += LANES) s += load(x + j);
    mean = total(s);
    for (; j < n; j++) mean += x[j];
    mean /= n;
    for (j = 0; j + LANES <= n; j += LANES) {
        Vector d = load(x + j) - mean;
        q += d * d;
    }
    square = total(q);
    for (; j < n; j++) square += (x[j] - mean) * (x[j] - mean);
    const float rate = 1 / std::sqrt(square / n + 1e-5f);
    if (scale)
        for (j = 0; j < n; j++) put(y[j], (x[j] - mean) * rate * scale[j] + shift[j]);
    else
        for (j = 0; j < n; j++) put(y[j], (x[j] - mean) * rate);
}

// -- attention of one new position over those so far

struct Heads {
    i64 count, width, position;  // of the heads; the new position's number
    i64 half() const { return (width + 1) / 2; }
    i64 row() const { return up(width, TILE); }  // of a value
    i64 keys() const { return CHUNK * 2 * half(); }
    i64 values() const { return CHUNK * row(); }
};

// q k of 16 positions and GROUPS times as many. What the next head needs is asked for meanwhile.
template <int GROUPS> static inline void scores(const Stored* k, const Number* q, i64 half, float* out) {
    Vector s[GROUPS] = {};
    for (i64 j = 0; j < half; j++)
#pragma GCC unroll 8
        for (int g = 0; g < GROUPS; g++) {
            const Stored* at = k + (g * half + j) * TILE;
            __builtin_prefetch(at + CHUNK * 2 * half);
            add(s[g], pairs(at), q + 2 * j);
        }
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) store(out + g * LANES, s[g]);
}

// out += sum over positions of weight value, over WIDE tiles of 32 numbers, the first and the second of each pair apart
template <int WIDE> static inline void mixed(const Stored* v, i64 row, const float* weight, i64 positions, Vector* out) {
    Vector s[2][WIDE][2] = {};
    i64 t = 0;
    for (; t + 2 <= positions; t += 2)
#pragma GCC unroll 8
        for (int u = 0; u < 2; u++)
#pragma GCC unroll 8
            for (int w = 0; w < WIDE; w++) {
                const Stored* at = v + (t + u) * row + w * TILE;
                __builtin_prefetch(at + CHUNK * row);
                const Pairs p = pairs(at);
                s[u][w][0] += first(p) * weight[t + u];
                s[u][w][1] += second(p) * weight[t + u];
            }
    for (; t < positions; t++)
#pragma GCC unroll 8
        for (int w = 0; w < WIDE; w++) {
            Pairs p = pairs(v + t * row + w * TILE);
            s[0][w][0] += first(p) * weight[t];
            s[0][w][1] += second(p) * weight[t];
        }
#pragma GCC unroll 8
    for (int w = 0; w < WIDE; w++) {
        out[2 * w] += s[0][w][0] + s[1][w][0];
        out[2 * w + 1] += s[0][w][1] + s[1][w][1];
    }
}

// softmax of rate x in place, not yet divided by the sum, which it returns
static float exponentials(float* x, i64 n, float rate) {
    const i64 padded = up(n, LANES);
    for (i64 j = n; j < padded; j++) x[j] = -INFINITY;
    Vector most = load(x), s = {};
    for (i64 j = LANES; j < padded; j += LANES) {
        Vector v = load(x + j);
        most = v > most ? v : most;
    }
    float m = most[0];
    for (i64 j = 1; j < LANES; j++) m = std::max(m, most[j]);
    for (i64 j = 0; j < padded; j++) x[j] = exponential(std::max((x[j] - m) * rate, -80.f));
    for (i64 j = n; j < padded; j++) x[j] = 0;
    for (i64 j = 0; j < padded; j += LANES) s += load(x + j);
    return total(s);
}

// What head `unit` (of rows times heads) attends to, given its q, k and v, which it takes in first. `room`: for q, k and the scores.
template <class Y>
static void attended(
    const Heads& f, i64 unit, const float* q, const float* k, const float* v, Stored* const* keys, Stored* const* values, float* room, Y* out) {
    const i64 half = f.half(), row = f.row(), p = f.position % CHUNK, last = f.position / CHUNK;
    float *mine = room, *score = room + 2 * row;
    Number* query = (Number*)(room + row);
    mine[2 * half - 1] = 0;  // beyond an odd width
    normal(k, mine, f.width, nullptr, nullptr);
    Stored* kept = keys[last] + unit * f.keys() + p / LANES * half * TILE + p % LANES * NEXT;
    for (i64 j = 0; j < half; j++, kept += TILE) put(kept[0], mine[2 * j]), put(kept[SECOND], mine[2 * j + 1]);
    kept = values[last] + unit * f.values() + p * row;
    for (i64 j = 0; j < row; j++) put(kept[j], j < f.width ? v[j] : 0.f);
    put(query[2 * half - 1], 0.f);
    normal(q, query, f.width, nullptr, nullptr);

    const i64 length = f.position + 1, whole = length / CHUNK;
    for (i64 c = 0; c < whole; c++) scores<4>(keys[c] + unit * f.keys(), query, half, score + c * CHUNK);
    for (i64 t = whole * CHUNK; t < length; t += LANES)
        scores<1>(keys[whole] + unit * f.keys() + (t - whole * CHUNK) * 2 * half, query, half, score + t);
    const float sum = exponentials(score, length, 1 / std::sqrt(float(f.width)));
    for (i64 from = 0; from < row; from += 2 * TILE) {
        Vector s[4] = {};
        const bool two = from + TILE < row;
        for (i64 c = 0; c * CHUNK < length; c++) {
            const Stored* at = values[c] + unit * f.values() + from;
            const i64 taken = std::min(CHUNK, length - c * CHUNK);
            two ? mixed<2>(at, row, score + c * CHUNK, taken, s) : mixed<1>(at, row, score + c * CHUNK, taken, s);
        }
        for (i64 j = from; j < std::min(f.width, from + 2 * TILE); j++) put(out[j], s[(j - from) / TILE * 2 + j / SECOND % 2][j % TILE / NEXT % LANES] / sum);
    }
}

// -- one position of the whole stack

// Threads wait for each other awake: what they wait for is some microseconds away. With fewer processors than threads they give way.
struct Meeting {
    std::atomic<i64> come{0};
    void all(i64& due, i64 threads) {
        due += threads;
        come.fetch_add(1, std::memory_order_acq_rel);
        for (i64 spun = 0; come.load(std::memory_order_acquire) < due; spun++) {
            if (spun > 4096) std::this_thread::yield();
#if defined(__x86_64__)
            else __builtin_ia32_pause();
#endif
        }
    }
};

struct Block {
    Layer qkv, out, inner, outer;
    const float *scale1, *shift1, *scale2, *shift2;  // (rows, width)
};
constexpr i64 PARTS = 12;
static Block block(void* const* at, i64 width, i64 inner) {
    auto layer = [&](int i, i64 in, i64 out) { return Layer{(const Stored*)at[i], (const float*)at[i + 1], in, out}; };
    return {layer(0, width, 3 * width), layer(2, width, width), layer(4, width, inner), layer(6, inner, width),
            (const float*)at[8], (const float*)at[9], (const float*)at[10], (const float*)at[11]};
}

// size: rows, width, heads, width of the inner layer, blocks, the position, threads, chunks there is room for, floats of a thread's
// room. at: x, y (rows, width); in rows padded to 16: the stream, its normalised form (threads, rows, .), q k v, what is attended
// to, the inner layer; the threads' rooms; and of each block the weight and bias of four layers and two scales and shifts. kept: of
// each block its chunks of keys, and of values.
extern "C" void decode(const i64* size, void* const* at, Stored* const* kept) {
    const i64 rows = size[0], width = size[1], heads = size[2], inner = size[3], blocks = size[4], chunks = size[7], room = size[8];
    const i64 xs = up(width, LANES), qs = up(3 * width, LANES);
    const Heads f{heads, width / heads, size[5]};
    const Stored* x = (const Stored*)at[0];
    Stored* y = (Stored*)at[1];
    float *stream = (float*)at[2], *qkv = (float*)at[4];
    Number *normed = (Number*)at[3], *seen = (Number*)at[5], *hidden = (Number*)at[6];
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < width; j++) stream[r * xs + j] = wide(x[r * width + j]);
    Meeting meeting;
#pragma omp parallel num_threads(size[6]) if (size[6] > 1)
    {
        const i64 rank = omp_get_thread_num(), threads = omp_get_num_threads();
        Number* mine = normed + rank * rows * xs;
        float* own = (float*)at[7] + rank * room;
        i64 due = 0;
        auto normalised = [&](const float* scale, const float* shift) {  // by each thread for itself: it is little
            for (i64 r = 0; r < rows; r++) normal(stream + r * xs, mine + r * xs, width, scale + r * width, shift + r * width);
        };
        for (i64 i = 0; i < blocks; i++) {
            const Block b = block(at + 8 + i * PARTS, width, inner);
            normalised(b.scale1, b.shift1);
            product<Then::NOTHING>(b.qkv, rows, mine, qkv, rank, threads);
            meeting.all(due, threads);
            for (i64 u = rows * heads * rank / threads; u < rows * heads * (rank + 1) / threads; u++) {
                const float* q = qkv + u / heads * qs + u % heads * f.width;
                Stored* const* keys = kept + 2 * i * chunks;
                attended(f, u, q, q + width, q + 2 * width, keys, keys + chunks, own, seen + u / heads * xs + u % heads * f.width);
            }
            meeting.all(due, threads);
            product<Then::ADDED>(b.out, rows, seen, stream, rank, threads);
            meeting.all(due, threads);
            normalised(b.scale2, b.shift2);
            product<Then::SILU>(b.inner, rows, mine, hidden, rank, threads);
            meeting.all(due, threads);
            product<Then::ADDED>(b.outer, rows, hidden, stream, rank, threads);
            meeting.all(due, threads);
        }
    }
    for (i64 r = 0; r < rows; r++)
        for (i64 j = 0; j < width; j++) put(y[r * width + j], stream[r * xs + j]);
}

// -- for many rows, whose products are better done elsewhere

// size: rows, width, heads, the position, threads, chunks, floats of a thread's room. out (rows, width) from qkv (rows, 3 width).
extern "C" void attend(const i64* size, const Stored* qkv, Stored* out, float* rooms, Stored* const* kept) {
    const i64 rows = size[0], width = size[1], heads = size[2], threads = size[4];
    const Heads f{heads, width / heads, size[3]};
    const i64 apart = up(f.width, TILE);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        float* room = rooms + omp_get_thread_num() * size[6];
        float *q = room, *k = q + apart, *v = k + apart;
#pragma omp for schedule(static)
        for (i64 u = 0; u < rows * heads; u++) {
            const Stored* from = qkv + u / heads * 3 * width + u % heads * f.width;
            for (i64 j = 0; j < f.width; j++) q[j] = wide(from[j]), k[j] = wide(from[width + j]), v[j] = wide(from[2 * width + j]);
            attended(f, u, q, k, v, kept, kept + size[5], v + apart, out + u / heads * width + u % heads * f.width);
        }
    }
}

// y = (x - mean) / deviation, times `scale`, and `shift`, all (rows, width)
extern "C" void modulate(i64 rows, i64 width, i64 threads, const Stored* x, const float* scale, const float* shift, Stored* y) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> a(width);
#pragma omp for schedule(static)
        for (i64 r = 0; r < rows; r++) {
            for (i64 j = 0; j < width; j++) a[j] = wide(x[r * width + j]);
            normal(a.data(), a.data(), width, scale + r * width, shift + r * width);
            for (i64 j = 0; j < width; j++) put(y[r * width + j], a[j]);
        }
    }
}
