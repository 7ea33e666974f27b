// Group normalisation, modulation and SiLU of images laid out channels-last, (images, pixels, channels), forwards and backwards.
// fused.py says the law. An image's groups are read once from memory and then from the cache, so the work is a task an image
// and block of whole groups. The channels may lie in two arrays, which saves the copy that joins them. Built by native.py.

#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "../core/numbers.h"

template <class T> struct Parts {  // channels [0, first) of `a`, the rest of `b`
    T *a, *b;
    i64 first, channels, pixels;
    // where channels [from, to), which lie in one of the arrays, begin in image n, and how far it is to the next pixel
    T* at(i64 n, i64 from, i64& stride) const {
        if (from < first) {
            stride = first;
            return a + n * pixels * first + from;
        }
        stride = channels - first;
        return b + n * pixels * stride + from - first;
    }
};

constexpr i64 WIDE = 128;     // channels of a pixel taken at a time
constexpr i64 NEAR = 1 << 17;  // values of an image taken at a time, so that they stay in a core's own cache

// `each(from, width)` over runs of channels of [low, high), none across the two arrays. Widths are mostly constants, for which the
// compiler makes straight vector code.
template <class F> static inline void runs(i64 low, i64 high, i64 first, F each) {
    for (i64 c = low; c < high;) {
        i64 left = (c < first && high > first ? first : high) - c;
        if (left >= WIDE) each(c, std::integral_constant<i64, WIDE>()), c += WIDE;
        else if (left >= 64) each(c, std::integral_constant<i64, 64>()), c += 64;
        else if (left >= 32) each(c, std::integral_constant<i64, 32>()), c += 32;
        else each(c, left), c += left;
    }
}

template <class A> struct Shape {
    i64 images, pixels, channels, groups, first, silu, threads;
    A eps;
    const A *weight, *bias;            // (channels) or null
    const A *shift, *scale, *offset;   // (images, channels) or null
    // Blocks of whole groups and, if possible, of multiples of 32 channels: as many as give all threads work and keep one in the cache.
    i64 blocks() const {
        i64 b = (threads + images - 1) / images, c = (channels * pixels + NEAR - 1) / NEAR, most = groups / unit();
        b = b > c ? b : c;
        return b < most ? b : most;
    }
    i64 unit() const {
        for (i64 u = 1; u < groups; u++)
            if (groups % u == 0 && u * (channels / groups) % 32 == 0) return u;
        return groups;
    }
    i64 edge(i64 block) const { return groups / unit() * block / blocks() * unit(); }
};

template <class T, class A, class W>
static inline void sums(const T* x, i64 stride, i64 pixels, W width, const A* origin, A* s, A* q) {
    for (i64 p = 0; p < pixels; p++, x += stride)
        for (i64 j = 0; j < width; j++) {
            A d = wide(x[j]) - origin[j];
            s[j] += d;
            q[j] += d * d;
        }
}

// y = act(x a + b)
template <class T, class A, bool ACT, class W>
static inline void affine(const T* x, i64 xs, T* y, i64 ys, i64 pixels, W width, const A* a, const A* b) {
    for (i64 p = 0; p < pixels; p++, x += xs, y += ys)
        for (i64 j = 0; j < width; j++) {
            A u = wide(x[j]) * a[j] + b[j];
            if (ACT) u = least(u), u = u * sigmoid(u);
            put(y[j], u);
        }
}

// A channel's factors in v = normalised * w + o
template <class A> static inline void modulation(const Shape<A>& f, i64 n, i64 c, A& w, A& o) {
    A one = f.scale ? 1 + f.scale[n * f.channels + c] : 1;
    w = (f.weight ? f.weight[c] : 1) * one;
    o = (f.bias ? f.bias[c] : 0) * one + (f.offset ? f.offset[n * f.channels + c] : 0);
}

// mean (images, channels) of what is normalised, and middle and rate (images, groups), its groups' means and 1 / deviations.
template <class T, class A>
static void forward(const Shape<A>& f, Parts<const T> x, T* out, A* mean, A* middle, A* rate) {
    const i64 C = f.channels, per = C / f.groups, blocks = f.blocks();
#pragma omp parallel for schedule(static) num_threads(f.threads) if (f.threads > 1)
    for (i64 task = 0; task < f.images * blocks; task++) {
        i64 n = task / blocks, block = task % blocks;
        i64 g0 = f.edge(block), g1 = f.edge(block + 1);
        std::vector<A> square(C), a(C), b(C);
        A* m = mean + n * C;
        runs(g0 * per, g1 * per, f.first, [&](i64 from, auto width) {
            i64 stride;
            const T* p = x.at(n, from, stride);
            A origin[WIDE] = {}, s[WIDE] = {}, q[WIDE] = {};
            for (i64 j = 0; j < width; j++) origin[j] = wide(p[j]);  // so that squares of what is far from 0 do not cancel
            sums<T, A>(p, stride, f.pixels, width, origin, s, q);
            for (i64 j = 0; j < width; j++) {
                A d = s[j] / f.pixels;
                m[from + j] = origin[j] + d + (f.shift ? f.shift[n * C + from + j] : 0);
                square[from + j] = q[j] - s[j] * d;
            }
        });
        for (i64 g = g0; g < g1; g++) {
            A u = 0, v = 0;
            for (i64 c = g * per; c < (g + 1) * per; c++) u += m[c];
            u /= per;
            for (i64 c = g * per; c < (g + 1) * per; c++) v += square[c] + f.pixels * (m[c] - u) * (m[c] - u);
            A r = 1 / std::sqrt(v / (per * f.pixels) + f.eps);
            middle[n * f.groups + g] = u;
            rate[n * f.groups + g] = r;
            for (i64 c = g * per; c < (g + 1) * per; c++) {
                A w, o;
                modulation(f, n, c, w, o);
                a[c] = r * w;
                b[c] = o - (u - (f.shift ? f.shift[n * C + c] : 0)) * a[c];
            }
        }
        runs(g0 * per, g1 * per, f.first, [&](i64 from, auto width) {
            i64 stride;
            const T* p = x.at(n, from, stride);
            T* y = out + n * f.pixels * C + from;
            A ca[WIDE], cb[WIDE];
            for (i64 j = 0; j < width; j++) ca[j] = a[from + j], cb[j] = b[from + j];
            if (f.silu)
                affine<T, A, true>(p, stride, y, C, f.pixels, width, ca, cb);
            else
                affine<T, A, false>(p, stride, y, C, f.pixels, width, ca, cb);
        });
    }
}

template <class A, bool ACT> static inline A slope(A u) {
    if (!ACT) return 1;
    u = least(u);
    A s = sigmoid(u);
    return s * (1 + u * (1 - s));
}

// g, the gradient before the activation, and its sums over pixels, and those of g (x - origin)
template <class T, class A, bool ACT, class W>
static inline void gathered(
    const T* x, i64 xs, const T* dy, i64 ys, i64 pixels, W width, const A* a, const A* b, const A* origin, A* s, A* h, A* kept) {
    for (i64 p = 0; p < pixels; p++, x += xs, dy += ys, kept += width)
        for (i64 j = 0; j < width; j++) {
            A v = wide(x[j]), g = wide(dy[j]) * slope<A, ACT>(v * a[j] + b[j]);
            kept[j] = g;
            s[j] += g;
            h[j] += g * (v - origin[j]);
        }
}

// dx = k g + l x + o
template <class T, class A, class W>
static inline void spread(const T* x, T* dx, i64 stride, const A* g, i64 pixels, W width, const A* k, const A* l, const A* o) {
    for (i64 p = 0; p < pixels; p++, x += stride, dx += stride, g += width)
        for (i64 j = 0; j < width; j++) put(dx[j], k[j] * g[j] + l[j] * wide(x[j]) + o[j]);
}

// dx, and (images, channels): G = sum of g, H = sum of g * normalised, D = sum of dx.
template <class T, class A, bool ACT>
static void backward(
    const Shape<A>& f, Parts<const T> x, const T* dy, Parts<T> dx, const A* mean, const A* middle, const A* rate, A* G, A* H, A* D) {
    const i64 C = f.channels, per = C / f.groups, blocks = f.blocks();
#pragma omp parallel for schedule(static) num_threads(f.threads) if (f.threads > 1)
    for (i64 task = 0; task < f.images * blocks; task++) {
        i64 n = task / blocks, block = task % blocks;
        i64 g0 = f.edge(block), g1 = f.edge(block + 1);
        std::vector<A> a(C), b(C), k(C), l(C), o(C), origin(C);
        std::unique_ptr<A[]> kept(new A[(g1 - g0) * per * f.pixels]);  // not vector, which would write zeros first
        for (i64 c = g0 * per; c < g1 * per; c++) {
            A w, v;
            modulation(f, n, c, w, v);
            a[c] = rate[n * f.groups + c / per] * w;
            origin[c] = middle[n * f.groups + c / per] - (f.shift ? f.shift[n * C + c] : 0);
            b[c] = v - origin[c] * a[c];
        }
        runs(g0 * per, g1 * per, f.first, [&](i64 from, auto width) {
            i64 stride;
            const T *p = x.at(n, from, stride), *y = dy + n * f.pixels * C + from;
            A *g = kept.get() + (from - g0 * per) * f.pixels, s[WIDE] = {}, h[WIDE] = {}, ca[WIDE], cb[WIDE], co[WIDE];
            for (i64 j = 0; j < width; j++) ca[j] = a[from + j], cb[j] = b[from + j], co[j] = origin[from + j];
            gathered<T, A, ACT>(p, stride, y, C, f.pixels, width, ca, cb, co, s, h, g);
            for (i64 j = 0; j < width; j++) {
                G[n * C + from + j] = s[j];
                H[n * C + from + j] = h[j] * rate[n * f.groups + (from + j) / per];
            }
        });
        for (i64 g = g0; g < g1; g++) {
            A first = 0, second = 0, r = rate[n * f.groups + g];
            for (i64 c = g * per; c < (g + 1) * per; c++) {
                A w = a[c] / r;
                first += w * G[n * C + c];
                second += w * H[n * C + c];
            }
            first /= per * f.pixels;
            second /= per * f.pixels;
            for (i64 c = g * per; c < (g + 1) * per; c++) {
                k[c] = a[c];
                l[c] = -r * r * second;
                o[c] = -r * first - l[c] * origin[c];
                A plain = mean[n * C + c] - (f.shift ? f.shift[n * C + c] : 0);  // of x itself
                D[n * C + c] = k[c] * G[n * C + c] + f.pixels * (l[c] * plain + o[c]);
            }
        }
        runs(g0 * per, g1 * per, f.first, [&](i64 from, auto width) {
            i64 stride;
            const T* p = x.at(n, from, stride);
            T* z = dx.at(n, from, stride);
            const A* g = kept.get() + (from - g0 * per) * f.pixels;
            A ck[WIDE], cl[WIDE], co[WIDE];
            for (i64 j = 0; j < width; j++) ck[j] = k[from + j], cl[j] = l[from + j], co[j] = o[from + j];
            spread<T, A>(p, z, stride, g, f.pixels, width, ck, cl, co);
        });
    }
}

template <class T, class A>
static void either(const i64* size, double eps, void** at) {
    Shape<A> f{size[0], size[1], size[2], size[3], size[4], size[5], size[6], A(eps), (const A*)at[0], (const A*)at[1],
               (const A*)at[2], (const A*)at[3], (const A*)at[4]};
    Parts<const T> x{(const T*)at[5], (const T*)at[6], f.first, f.channels, f.pixels};
    A *mean = (A*)at[8], *middle = (A*)at[9], *rate = (A*)at[10];
    if (!size[7]) return forward<T, A>(f, x, (T*)at[7], mean, middle, rate);
    Parts<T> dx{(T*)at[11], (T*)at[12], f.first, f.channels, f.pixels};
    A *G = (A*)at[13], *H = (A*)at[14], *D = (A*)at[15];
    if (f.silu) return backward<T, A, true>(f, x, (const T*)at[7], dx, mean, middle, rate, G, H, D);
    backward<T, A, false>(f, x, (const T*)at[7], dx, mean, middle, rate, G, H, D);
}

// size: images, pixels, channels, groups, channels of the first array, silu, threads, backwards; at: see `either`.
extern "C" void normalise_bf16(const i64* size, double eps, void** at) { either<bf16, float>(size, eps, at); }
extern "C" void normalise_float(const i64* size, double eps, void** at) { either<float, float>(size, eps, at); }
extern "C" void normalise_double(const i64* size, double eps, void** at) { either<double, double>(size, eps, at); }
