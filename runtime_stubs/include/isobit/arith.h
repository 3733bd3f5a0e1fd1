/* Integer helpers of the code that isobit generates.  C99, no floating point, no allocation. */
#ifndef ISOBIT_ARITH_H
#define ISOBIT_ARITH_H

#include <stdint.h>

/* `>>` of a negative value must round down: C leaves that to the compiler, every one that matters does it. */
typedef char isobit_needs_arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1];

static inline int32_t isobit_clip32(int32_t x, int32_t lo, int32_t hi) {
  return x < lo ? lo : x > hi ? hi : x;
}

static inline int64_t isobit_clip64(int64_t x, int64_t lo, int64_t hi) {
  return x < lo ? lo : x > hi ? hi : x;
}

static inline int32_t isobit_max32(int32_t a, int32_t b) { return a < b ? b : a; }

static inline int64_t isobit_max64(int64_t a, int64_t b) { return a < b ? b : a; }

/* The high half of a 64-bit product: one instruction (SMULL, SMMUL, MULH) on a 32-bit core. */
static inline int32_t isobit_mulh(int32_t a, int32_t b) { return (int32_t)(((int64_t)a * b) >> 32); }

/* Leading zeros of x >= 0 seen as a number of `width` bits. */
static inline int32_t isobit_clz(int64_t x, int32_t width) {
  int32_t length = 0;
#if defined(__GNUC__)
  if ((x >> 32) != 0) {
    length = 64 - __builtin_clz((uint32_t)(x >> 32));
  } else if (x != 0) {
    length = 32 - __builtin_clz((uint32_t)x);
  }
#else
  for (; x != 0; x >>= 1) length++;
#endif
  return width - length;
}

/* x * 2^n where the result is known to fit: a shift of a negative value would be undefined. */
static inline int64_t isobit_shl(int64_t x, int32_t n) { return (int64_t)((uint64_t)x << n); }

/* A kernel is not inlined: in `step`, its inner loops would share registers with those of all others. */
#ifdef __GNUC__
#define ISOBIT_KERNEL __attribute__((noinline)) static
#else
#define ISOBIT_KERNEL static
#endif

/* Code number i of an array of codes of `bits` bits, at most 16, packed from the lowest bit on. */
static inline int32_t isobit_code(const uint8_t *codes, int32_t i, int32_t bits) {
  const uint32_t at = (uint32_t)i * (uint32_t)bits;
  const uint8_t *first = codes + (at >> 3);
  uint32_t window = first[0];
  if (8 % bits != 0) window |= (uint32_t)first[1] << 8;
  if (bits > 9) window |= (uint32_t)first[2] << 16;
  return (int32_t)((window >> (at & 7)) & ((1u << bits) - 1));
}

/* Reports one element of a node's output in a traced build; nothing otherwise. */
#ifdef ISOBIT_TRACE
void isobit_tap(int32_t node, int32_t index, int64_t value);
#define ISOBIT_TAP(node, index, value) isobit_tap((node), (index), (value))
#else
#define ISOBIT_TAP(node, index, value) ((void)0)
#endif

#endif
