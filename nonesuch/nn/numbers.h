// The numbers that the compiled code reads and writes: bf16, float and double, computed with in float or double.

#pragma once
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
