/* hls::stream<T> for C simulation with an ordinary C++14 compiler; Vitis HLS takes its own header of this
   name. Of unlimited depth. A read from an empty stream, which would hang the hardware, ends the program.
   Data that is left in a stream when it is destroyed gets the warning of Vitis on stderr and counts in
   leftover_streams(), which exists only where ISOBIT_HLS_STREAM_H is defined. */
#ifndef ISOBIT_HLS_STREAM_H
#define ISOBIT_HLS_STREAM_H

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>

namespace hls {

/* How many streams were destroyed so far while they held data. */
inline int& leftover_streams() {
  static int count = 0;
  return count;
}

template <class T>
class stream {
 public:
  explicit stream(const std::string& name = "unnamed") : name_(name) {}
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;
  ~stream() {
    if (data_.empty()) return;
    leftover_streams() += 1;
    std::fprintf(
        stderr,
        "WARNING: Hls::stream '%s' contains leftover data, which may result in RTL simulation hanging. "
        "(%zu elements)\n",
        name_.c_str(), data_.size());
  }

  T read() {
    if (data_.empty()) {
      std::fprintf(stderr, "ERROR: Hls::stream '%s' is read while empty\n", name_.c_str());
      std::abort();
    }
    T x = data_.front();
    data_.pop_front();
    return x;
  }
  void read(T& x) { x = read(); }
  void write(const T& x) { data_.push_back(x); }
  bool empty() const { return data_.empty(); }
  bool full() const { return false; }
  std::size_t size() const { return data_.size(); }

 private:
  std::string name_;
  std::deque<T> data_;
};

}  // namespace hls

#endif
