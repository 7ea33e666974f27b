// The numbers that the compiled code reads and writes: bf16, float and double, computed with in float or double, and the exponentials of them.

#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef int64_t i64;

struct bf16 {
    uint16_t bits;
};
static inline float wide(bf16 x) {
    uint32_t b = uint32_t(x.bits) << 16;
    float f;
    std::memcpy(&f, &b, 4);
    return f;
}
static inline float wide(float x) { return x; }
static inline double wide(double x) { return x; }
static inline void put(bf16& to, float x) {  // to the nearest, ties to even
    uint32_t b;
    std::memcpy(&b, &x, 4);
    to.bits = uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
static inline void put(float& to, float x) { to = x; }
static inline void put(double& to, double x) { to = x; }

// exp(x) for x in [-80, 80] without a branch or a call, so that it is done 16 at a time: 2^n e^r with n = round(x / log 2) found by
// adding 1.5 * 2^23, whose lowest bits then are n.
static inline float exponential(float x) {
    float t = x * 1.44269504f + 12582912.f;
    uint32_t n, b;
    std::memcpy(&n, &t, 4);
    float k = t - 12582912.f;
    float r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    float p = 1.f / 720;
    p = p * r + 1.f / 120;
    p = p * r + 1.f / 24;
    p = p * r + 1.f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.f;
    p = p * r + 1.f;
    std::memcpy(&b, &p, 4);
    b += n << 23;
    std::memcpy(&p, &b, 4);
    return p;
}
// 1 / (1 + exp(-u)), the reciprocal by Newton's iteration from a guess of its bits, which is quicker than a division.
static inline float sigmoid(float u) {
    float x = -u;
    x = x > 80.f ? 80.f : x;
    x = x < -80.f ? -80.f : x;
    float d = 1.f + exponential(x), q;
    uint32_t b;
    std::memcpy(&b, &d, 4);
    b = 0x7EF311C7u - b;
    std::memcpy(&q, &b, 4);
    q = q * (2.f - d * q);
    q = q * (2.f - d * q);
    q = q * (2.f - d * q);
    return q;
}
// Below -80 SiLU is 0 in float32, and its sigmoid is not quite.
template <class A> static inline A least(A u) { return u < -80 ? A(-80) : u; }
static inline double sigmoid(double u) { return 1 / (1 + std::exp(-u)); }
