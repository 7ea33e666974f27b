// Philox4x32-10 and what is made of its words, the same bits as seeds.py, which says the law. 16 counters go through together.
// Built by compiled.py.

#include <type_traits>
#include <vector>

#include "numbers.h"

constexpr i64 LANES = 16, WORDS = 4 * LANES, PIECE = 64 * WORDS;  // counters together, their words, words of one task

typedef uint64_t Eight __attribute__((vector_size(64)));  // words of eight counters, each with room for a product

// The words of counters (block + 0 ... 15, step, low, high), in the order of the counters.
static inline void philox(uint32_t block, uint32_t step, uint32_t low, uint32_t high, uint32_t k0, uint32_t k1, uint32_t* words) {
    const Eight mask = Eight{} + 0xffffffffu, upto = {0, 1, 2, 3, 4, 5, 6, 7};
    Eight a[2] = {(upto + block) & mask, (upto + 8 + block) & mask}, b[2], c[2], d[2];
    for (int h = 0; h < 2; h++) b[h] = Eight{} + step, c[h] = Eight{} + low, d[h] = Eight{} + high;
    for (int r = 0; r < 10; r++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            const Eight p = a[h] * 0xD2511F53u, q = c[h] * 0xCD9E8D57u;
            a[h] = (q >> 32) ^ b[h] ^ k0;
            c[h] = (p >> 32) ^ d[h] ^ k1;
            b[h] = q & mask;
            d[h] = p & mask;
        }
    uint64_t pairs[2 * LANES];  // of words, the first in the low half: as they lie in memory
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        const Eight first = a[h] | b[h] << 32, second = c[h] | d[h] << 32;
        for (i64 j = 0; j < 8; j++) pairs[16 * h + 2 * j] = first[j], pairs[16 * h + 2 * j + 1] = second[j];
    }
    std::memcpy(words, pairs, sizeof pairs);
}

struct Draw {
    i64 pictures, words, step, threads, own;  // own: whether each picture has a key of its own
    const uint32_t *keys, *low, *high;
};

// `put(picture, first, words, how many)` for the words of all pictures, 64 at a time but for the last.
template <class F> static void drawn(const Draw& d, F put) {
    const i64 pieces = (d.words + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(static) num_threads(d.threads) if (d.threads > 1)
    for (i64 task = 0; task < d.pictures * pieces; task++) {
        const i64 i = task / pieces, end = (task % pieces + 1) * PIECE < d.words ? (task % pieces + 1) * PIECE : d.words;
        const uint32_t* key = d.keys + (d.own ? 2 * i : 0);
        uint32_t words[WORDS];
        for (i64 from = task % pieces * PIECE; from < end; from += WORDS) {
            philox(uint32_t(from / 4), uint32_t(d.step), d.low[i], d.high[i], key[0], key[1], words);
            if (end - from >= WORDS)
                put(i, from, words, std::integral_constant<i64, WORDS>());
            else
                put(i, from, words, end - from);
        }
    }
}

// y = x times `kept` where the byte of a value is at least `cut`, else x times 0. Values count in the order (channels, pixels), and
// lie so, or, if `last`, in the order (pixels, channels): then bytes of 64 channels are turned over in squares that stay in the cache.
constexpr i64 SIDE = 64;
template <class T, class N> static inline void some(const T* __restrict x, const uint8_t* __restrict bytes, T* __restrict y, N n, int32_t cut, float kept) {
    for (i64 j = 0; j < n; j++) put(y[j], wide(x[j]) * (kept * float(int32_t(bytes[j]) >= cut)));
}
// to[p][c] = from[c][p], four by four at a time: up to three more of both are read and written than there are
static inline void turn(const uint8_t* from, i64 channels, i64 pixels, i64 apart, uint8_t (*to)[SIDE]) {
    const uint32_t even = 0x00ff00ff, low = 0xffff;
    for (i64 c = 0; c < channels; c += 4)
        for (i64 p = 0; p < pixels; p += 4) {
            uint32_t w[4];
            for (i64 k = 0; k < 4; k++) std::memcpy(w + k, from + (c + k) * apart + p, 4);
            const uint32_t a = (w[0] & even) | (w[1] & even) << 8, b = (w[0] >> 8 & even) | (w[1] & ~even);
            const uint32_t e = (w[2] & even) | (w[3] & even) << 8, f = (w[2] >> 8 & even) | (w[3] & ~even);
            const uint32_t row[4] = {(a & low) | e << 16, (b & low) | f << 16, a >> 16 | (e & ~low), b >> 16 | (f & ~low)};
            for (i64 k = 0; k < 4; k++) std::memcpy(to[p + k] + c, row + k, 4);
        }
}
template <class T> static void dropped(const Draw& d, i64 channels, i64 pixels, bool last, int32_t cut, float kept, const T* x, T* y) {
    if (!last)
        return drawn(d, [&](i64 i, i64 from, const uint32_t* w, auto) {
            const i64 left = channels * pixels - 4 * from, at = i * channels * pixels + 4 * from;
            if (left >= 4 * WORDS)
                some(x + at, (const uint8_t*)w, y + at, std::integral_constant<i64, 4 * WORDS>(), cut, kept);
            else
                some(x + at, (const uint8_t*)w, y + at, left, cut, kept);
        });
    const i64 tiles = (channels + SIDE - 1) / SIDE;
#pragma omp parallel for schedule(static) num_threads(d.threads) if (d.threads > 1)
    for (i64 task = 0; task < d.pictures * tiles; task++) {
        const i64 i = task / tiles, c0 = task % tiles * SIDE, width = channels - c0 < SIDE ? channels - c0 : SIDE;
        const uint32_t* key = d.keys + (d.own ? 2 * i : 0);
        std::vector<uint32_t> words((width + 4) * pixels / 4 + 2 * WORDS);
        for (i64 from = 0; 4 * from < width * pixels; from += WORDS)
            philox(uint32_t((c0 * pixels / 4 + from) / 4), uint32_t(d.step), d.low[i], d.high[i], key[0], key[1], &words[from]);
        const uint8_t* bytes = (const uint8_t*)words.data();
        for (i64 p0 = 0; p0 < pixels; p0 += SIDE) {
            const i64 height = pixels - p0 < SIDE ? pixels - p0 : SIDE;
            uint8_t turned[SIDE][SIDE];
            turn(bytes + p0, width, height, pixels, turned);
            for (i64 p = 0; p < height; p++) {
                const i64 at = (i * pixels + p0 + p) * channels + c0;
                if (width == SIDE)
                    some(x + at, turned[p], y + at, std::integral_constant<i64, SIDE>(), cut, kept);
                else
                    some(x + at, turned[p], y + at, width, cut, kept);
            }
        }
    }
}

extern "C" {
// (pictures, words): the words
void words(const Draw* d, i64* out) {
    drawn(*d, [&](i64 i, i64 from, const uint32_t* w, auto n) {
        i64* to = out + i * d->words + from;
        for (i64 j = 0; j < n; j++) to[j] = w[j];
    });
}
// the middles of 2^23 cells of (0, 1)
void uniform(const Draw* d, float* out) {
    drawn(*d, [&](i64 i, i64 from, const uint32_t* w, auto n) {
        float* to = out + i * d->words + from;
        for (i64 j = 0; j < n; j++) to[j] = (float(int32_t(w[j] >> 9)) + 0.5f) * 0x1p-23f;
    });
}
// of each pair of words a number in (0, 1] and an angle in [0, 2 pi)
void polar(const Draw* d, float* number, float* angle) {
    drawn(*d, [&](i64 i, i64 from, const uint32_t* w, auto n) {
        float *a = number + (i * d->words + from) / 2, *b = angle + (i * d->words + from) / 2;
        for (i64 j = 0; j < n / 2; j++) {
            a[j] = float((double(w[2 * j]) + 1) * 0x1p-32);
            b[j] = float(int32_t(w[2 * j + 1] >> 8)) * float(6.283185307179586 * 0x1p-24);
        }
    });
}
// (pictures, count): `kept` where a byte is at least `cut`, else 0; the words hold `count` bytes and up to three more
void keep(const Draw* d, float* out, i64 count, i64 cut, float kept) {
    const int32_t least = int32_t(cut);
    drawn(*d, [=](i64 i, i64 from, const uint32_t* w, auto) {
        float* to = out + i * count + 4 * from;
        uint8_t bytes[4 * WORDS];
        std::memcpy(bytes, w, sizeof bytes);
        const i64 left = count - 4 * from;
        const float some = kept;
        if (left >= 4 * WORDS)
            for (i64 j = 0; j < 4 * WORDS; j++) to[j] = int32_t(bytes[j]) >= least ? some : 0.f;
        else
            for (i64 j = 0; j < left; j++) to[j] = int32_t(bytes[j]) >= least ? some : 0.f;
    });
}
void drop_bf16(const Draw* d, const bf16* x, bf16* y, i64 channels, i64 pixels, i64 last, i64 cut, float kept) {
    bf16 rounded;
    put(rounded, kept);
    dropped(*d, channels, pixels, last, int32_t(cut), wide(rounded), x, y);
}
void drop_float(const Draw* d, const float* x, float* y, i64 channels, i64 pixels, i64 last, i64 cut, float kept) {
    dropped(*d, channels, pixels, last, int32_t(cut), kept, x, y);
}
}
