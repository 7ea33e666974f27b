// Passes over long arrays that are limited by memory, so that each number is read once and written once. Built by native.py.

#include <cmath>
#include <type_traits>
#include <vector>

#include "../core/numbers.h"

constexpr i64 CHUNK = 1 << 16;  // numbers of one task
constexpr i64 LINE = 64;        // numbers taken at a time
constexpr i64 AHEAD = 512;      // how far ahead of what is computed memory is asked for: the processor follows few arrays by itself

struct Chunk {
    i64 row, from, to;
};
static std::vector<Chunk> chunks(i64 rows, const i64* sizes) {
    std::vector<Chunk> found;
    for (i64 row = 0; row < rows; row++)
        for (i64 from = 0; from < sizes[row]; from += CHUNK)
            found.push_back({row, from, from + CHUNK < sizes[row] ? from + CHUNK : sizes[row]});
    return found;
}

struct Step {
    float clip, kept, beta1, rate1, beta2, rate2, step, root2, eps, rate;
};

template <bool AVERAGED, class W>
static inline void stepped(
    float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, float* __restrict a, W width, Step k) {
    for (i64 j = 0; j < width; j++) {
        float d = g[j] * k.clip;
        m[j] = m[j] * k.beta1 + d * k.rate1;
        v[j] = v[j] * k.beta2 + d * d * k.rate2;
        p[j] = p[j] * k.kept - k.step * m[j] / (std::sqrt(v[j]) * k.root2 + k.eps);
        if (AVERAGED) a[j] = a[j] + (p[j] - a[j]) * k.rate;
    }
}

template <bool AVERAGED> static void stepped(float* const* at, i64 from, i64 to, const Step& k) {
    float *p = at[0], *g = at[1], *m = at[2], *v = at[3], *a = at[4];
    i64 i = from;
    for (; i + LINE <= to; i += LINE) {
        for (i64 j = i + AHEAD; j < i + AHEAD + LINE; j += 16)
            for (int t = 0; t < 4 + AVERAGED; t++) __builtin_prefetch(at[t] + j);
        stepped<AVERAGED>(p + i, g + i, m + i, v + i, a + i, std::integral_constant<i64, LINE>(), k);
    }
    stepped<AVERAGED>(p + i, g + i, m + i, v + i, a + i, to - i, k);
}

// One step of Adam and of the averages. at: of each row its parameter, gradient, two moments and average (or null). numbers: what
// gradients are multiplied by, what is kept of a parameter, the two betas, lr / (1 - beta1^t), sqrt(1 - beta2^t), eps, and 1 - the
// average's decay.
extern "C" void adam(i64 rows, i64 threads, const i64* sizes, float* const* at, const double* n) {
    const Step k{float(n[0]), float(n[1]), float(n[2]), float(1 - n[2]), float(n[3]),
                 float(1 - n[3]), float(n[4]), float(1 / n[5]), float(n[6]), float(n[7])};
    const std::vector<Chunk> work = chunks(rows, sizes);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < i64(work.size()); i++) {
        float* const* row = at + 5 * work[i].row;
        if (row[4])
            stepped<true>(row, work[i].from, work[i].to, k);
        else
            stepped<false>(row, work[i].from, work[i].to, k);
    }
}

// out = g where x is above zero, slope g elsewhere: the leaky rectifier, with g = x, and its derivatives.
template <class T> static void sided(i64 n, i64 threads, float slope, const T* x, const T* g, T* out) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (i64 from = 0; from < n; from += CHUNK) {
        const T *a = x + from, *b = g + from;
        T* __restrict y = out + from;
        i64 count = n - from < CHUNK ? n - from : CHUNK;
        for (i64 j = 0; j < count; j++) put(y[j], wide(b[j]) * (wide(a[j]) > 0 ? 1.f : slope));
    }
}
extern "C" void sided_bf16(i64 n, i64 threads, float slope, const bf16* x, const bf16* g, bf16* out) {
    sided(n, threads, slope, x, g, out);
}
extern "C" void sided_float(i64 n, i64 threads, float slope, const float* x, const float* g, float* out) {
    sided(n, threads, slope, x, g, out);
}
