/* ap_int<W> and ap_uint<W> for C simulation with an ordinary C++14 compiler; Vitis HLS takes its own header
   of this name. What compiles here has the values and the result types of Vitis HLS. What Vitis computes
   differently from mathematics (comparisons and divisions of mixed signedness) or from the eye (a built-in
   integer shifted by an ap type), and what would need more than 128 bits, does not compile here. */
#ifndef ISOBIT_HLS_AP_INT_H
#define ISOBIT_HLS_AP_INT_H

#include <cstdint>
#include <type_traits>

template <int W, bool S>
struct ap_int_base;
template <int W>
using ap_int = ap_int_base<W, true>;
template <int W>
using ap_uint = ap_int_base<W, false>;

namespace ap_detail {

__extension__ typedef __int128 Int128;
__extension__ typedef unsigned __int128 Uint128;

/* What an operand counts as: an ap type as itself, a built-in integer as the ap type of its size. */
template <class T, bool BuiltIn = std::is_integral<T>::value>
struct Operand {
  static constexpr bool is_integer = false, is_ap = false;
};
template <class T>
struct Operand<T, true> {
  static constexpr bool is_integer = true, is_ap = false;
  using type = ap_int_base<std::is_same<T, bool>::value ? 1 : 8 * int(sizeof(T)), std::is_signed<T>::value>;
};
template <int W, bool S>
struct Operand<ap_int_base<W, S>, false> {
  static constexpr bool is_integer = true, is_ap = true;
  using type = ap_int_base<W, S>;
};

constexpr int max_of(int a, int b) { return a > b ? a : b; }
constexpr int min_of(int a, int b) { return a < b ? a : b; }

/* The result types of a binary operator. Where one operand alone is signed, the other counts one bit wider.
   The empty primary template takes the operators below out of every expression that has no ap operand. */
template <class A, class B,
          bool Ours =
              (Operand<A>::is_ap || Operand<B>::is_ap) && Operand<A>::is_integer&& Operand<B>::is_integer>
struct Results {};
template <class A, class B>
struct Results<A, B, true> {
  using Left = typename Operand<A>::type;
  using Right = typename Operand<B>::type;
  static constexpr bool same_sign = Left::is_signed == Right::is_signed;
  static constexpr bool is_signed = Left::is_signed || Right::is_signed;
  static constexpr int common = max_of(Left::width + (is_signed && !Left::is_signed),  //
                                       Right::width + (is_signed && !Right::is_signed));
  using Sum = ap_int_base<common + 1, is_signed>;
  using Difference = ap_int_base<common + 1, true>;
  using Product = ap_int_base<Left::width + Right::width, is_signed>;
  using Logic = ap_int_base<common, is_signed>;
  using Quotient = ap_int_base<Left::width + Right::is_signed, is_signed>;
  using Remainder = ap_int_base<min_of(Left::width, Right::width), Left::is_signed>;
  using Bool = bool;
};

}  // namespace ap_detail

/* A W-bit integer, two's complement where S. Every conversion to it keeps the low W bits. As in Vitis, a
   variable that is not static has no defined value before the first assignment. */
template <int W, bool S>
struct ap_int_base {
  static_assert(W >= 1 && W <= 128, "ap_int.h: a width is 1 to 128 bits");

  static constexpr int width = W;
  static constexpr bool is_signed = S;
  using Word = std::conditional_t<W <= 64, uint64_t, ap_detail::Uint128>;
  using SignedWord = std::conditional_t<W <= 64, int64_t, ap_detail::Int128>;
  using Value = std::conditional_t<S, SignedWord, Word>;
  using Native = std::conditional_t<S, long long, unsigned long long>;

  ap_int_base() = default;
  template <class T, class = std::enable_if_t<std::is_integral<T>::value>>
  constexpr ap_int_base(T x) : value_(wrap(Word(x))) {}
  template <int V, bool T>
  constexpr ap_int_base(const ap_int_base<V, T>& x) : value_(wrap(Word(x.value()))) {}

  /* The integer whose low W bits are those of `bits`. */
  static ap_int_base from_bits(Word bits) {
    ap_int_base x;
    x.value_ = wrap(bits);
    return x;
  }
  constexpr Value value() const { return value_; }
  constexpr Word bits() const { return Word(value_); }

  constexpr operator Native() const {
    static_assert(W <= 64,
                  "ap_int.h: Vitis keeps 64 bits here without a word; cast to ap_int<64> or ap_uint<64>");
    return Native(value_);
  }
  constexpr int to_int() const { return int(value_); }
  constexpr long long to_int64() const { return (long long)(value_); }
  constexpr unsigned long long to_uint64() const { return (unsigned long long)(value_); }

  ap_int_base operator+() const { return *this; }
  ap_int_base operator~() const { return from_bits(~bits()); }
  bool operator!() const { return value_ == 0; }

  /* Compound assignment wraps to the width of the left operand. */
  template <class T>
  ap_int_base& operator+=(const T& y) {
    return *this = from_bits(bits() + ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator-=(const T& y) {
    return *this = from_bits(bits() - ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator*=(const T& y) {
    return *this = from_bits(bits() * ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator&=(const T& y) {
    return *this = from_bits(bits() & ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator|=(const T& y) {
    return *this = from_bits(bits() | ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator^=(const T& y) {
    return *this = from_bits(bits() ^ ap_int_base(y).bits());
  }
  template <class T>
  ap_int_base& operator<<=(const T& by) {
    return *this = *this << by;
  }
  template <class T>
  ap_int_base& operator>>=(const T& by) {
    return *this = *this >> by;
  }

 private:
  static constexpr Value wrap(Word bits) {
    return Value(bits << (8 * int(sizeof(Word)) - W)) >> (8 * int(sizeof(Word)) - W);
  }

  Value value_;
};

#define ISOBIT_AP_BINARY(op, Result)                                              \
  template <class A, class B>                                                     \
  typename ap_detail::Results<A, B>::Result operator op(const A& a, const B& b) { \
    using R = typename ap_detail::Results<A, B>::Result;                          \
    return R::from_bits(R(a).bits() op R(b).bits());                              \
  }
ISOBIT_AP_BINARY(+, Sum)
ISOBIT_AP_BINARY(-, Difference)
ISOBIT_AP_BINARY(*, Product)
ISOBIT_AP_BINARY(&, Logic)
ISOBIT_AP_BINARY(|, Logic)
ISOBIT_AP_BINARY(^, Logic)
#undef ISOBIT_AP_BINARY

/* Signed, one bit wider; three bits for ap_int<1>. */
template <int W, bool S>
auto operator-(const ap_int_base<W, S>& x) {
  return ap_uint<1>(0) - x;
}

/* Quotient toward zero; the remainder has the sign of the dividend. */
#define ISOBIT_AP_DIVISION(op, Result)                                                             \
  template <class A, class B>                                                                      \
  typename ap_detail::Results<A, B>::Result operator op(const A& a, const B& b) {                  \
    using All = ap_detail::Results<A, B>;                                                          \
    static_assert(All::same_sign, "ap_int.h: cast to one signedness before a division");           \
    using Wide = typename All::Sum;                                                                \
    return All::Result::from_bits(typename All::Result::Word(Wide(a).value() op Wide(b).value())); \
  }
ISOBIT_AP_DIVISION(/, Quotient)
ISOBIT_AP_DIVISION(%, Remainder)
#undef ISOBIT_AP_DIVISION

#define ISOBIT_AP_COMPARISON(op)                                                           \
  template <class A, class B>                                                              \
  typename ap_detail::Results<A, B>::Bool operator op(const A& a, const B& b) {            \
    using All = ap_detail::Results<A, B>;                                                  \
    static_assert(All::same_sign, "ap_int.h: cast to one signedness before a comparison"); \
    return typename All::Logic(a).value() op typename All::Logic(b).value();               \
  }
ISOBIT_AP_COMPARISON(==)
ISOBIT_AP_COMPARISON(!=)
ISOBIT_AP_COMPARISON(<)
ISOBIT_AP_COMPARISON(<=)
ISOBIT_AP_COMPARISON(>)
ISOBIT_AP_COMPARISON(>=)
#undef ISOBIT_AP_COMPARISON

namespace ap_detail {

/* x * 2^by rounded down, with the width of x; `by` may have either sign and any size. */
template <int W, bool S>
ap_int_base<W, S> shifted(const ap_int_base<W, S>& x, int64_t by) {
  using X = ap_int_base<W, S>;
  if (by >= 0) return by < W ? X::from_bits(x.bits() << by) : X(0);
  if (by > -W) return X::from_bits(typename X::Word(x.value() >> -by));
  return X(x.value() < 0 ? -1 : 0);
}

/* A shift's amount; 32 bits are as much as Vitis looks at. */
template <class B>
int64_t shift_amount(const B& by) {
  static_assert(Operand<B>::type::width <= 32, "ap_int.h: a shift's amount has at most 32 bits");
  return int64_t(by);
}

}  // namespace ap_detail

/* A shift keeps the type of its left operand: a left shift drops high bits. A negative amount shifts the
   other way. */
template <int W, bool S, class B, class = std::enable_if_t<ap_detail::Operand<B>::is_integer>>
ap_int_base<W, S> operator<<(const ap_int_base<W, S>& x, const B& by) {
  return ap_detail::shifted(x, ap_detail::shift_amount(by));
}
template <int W, bool S, class B, class = std::enable_if_t<ap_detail::Operand<B>::is_integer>>
ap_int_base<W, S> operator>>(const ap_int_base<W, S>& x, const B& by) {
  return ap_detail::shifted(x, -ap_detail::shift_amount(by));
}
/* The result would be a built-in int: 1 << x is not as wide as it looks. */
template <class A, int W, bool S, class = std::enable_if_t<std::is_integral<A>::value>>
A operator<<(A, const ap_int_base<W, S>&) = delete;
template <class A, int W, bool S, class = std::enable_if_t<std::is_integral<A>::value>>
A operator>>(A, const ap_int_base<W, S>&) = delete;

#endif
