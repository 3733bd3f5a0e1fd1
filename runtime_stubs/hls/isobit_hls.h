/* What the sources that isobit generates need beside ap_int. The same file serves C simulation and Vitis HLS.
 */
#ifndef ISOBIT_HLS_H
#define ISOBIT_HLS_H

#include <ap_int.h>

namespace isobit {

/* x limited to [lo, hi], lo <= hi. W is wide enough for all three. */
template <int W>
ap_int<W> clip(ap_int<W> x, ap_int<W> lo, ap_int<W> hi) {
#pragma HLS INLINE
  return x < lo ? lo : x > hi ? hi : x;
}

/* The larger of a and b. */
template <int W>
ap_int<W> max(ap_int<W> a, ap_int<W> b) {
#pragma HLS INLINE
  return a < b ? b : a;
}

/* Leading zeros of the W-bit unsigned number x; W for 0. A priority encoder. */
template <int W>
ap_int<8> leading_zeros(ap_uint<W> x) {
#pragma HLS INLINE
  ap_int<8> zeros = W;
  for (int i = 0; i < W; i++) {
#pragma HLS UNROLL
    if (ap_uint<1>(x >> i)) zeros = W - 1 - i;
  }
  return zeros;
}

}  // namespace isobit

/* A traced build reports element `index` of the output of node `node`; every other build computes nothing
 * here. */
#ifdef ISOBIT_TRACE
void isobit_tap(int node, int index, long long value);
#define ISOBIT_TAP(node, index, value) isobit_tap(node, index, value)
#else
#define ISOBIT_TAP(node, index, value)
#endif

#endif
