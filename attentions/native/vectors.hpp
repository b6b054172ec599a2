// Shared by the kernels: vectors of lanes, a vectorised exponential, threads, and error reporting.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif

template <typename T>
struct Number;

template <>
struct Number<float> {
  using Integer = int32_t;
  static constexpr float low = -87.0f, high = 88.0f, magic = 12582912.0f;  // 1.5 · 2^23: adding it rounds
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int mantissa = 23, degree = 7;
};

template <>
struct Number<double> {
  using Integer = int64_t;
  static constexpr double low = -708.0, high = 709.0, magic = 6755399441055744.0;  // 1.5 · 2^52
  static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
  static constexpr int mantissa = 52, degree = 13;
};

template <typename T>
struct Vector {
  typedef T type __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
  typedef typename Number<T>::Integer bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(T));
};

template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
inline Vec<T> load(const T *from) {
  return *reinterpret_cast<const Vec<T> *>(from);
}

template <typename T>
inline void store(T *to, Vec<T> x) {
  *reinterpret_cast<Vec<T> *>(to) = x;
}

// 2^n · p(r) with Taylor's polynomial for |r| <= ln(2) / 2; on underflow returns the smallest normal number.
template <typename T>
inline Vec<T> exponential(Vec<T> x) {
  using N = Number<T>;
  using Bits = typename Vector<T>::bits;
  const Vec<T> low = Vec<T>{} + N::low, high = Vec<T>{} + N::high;
  x = x > low ? x : low;
  x = x < high ? x : high;
  const Vec<T> shifted = x * static_cast<T>(1.44269504088896340736) + N::magic;
  const Vec<T> n = shifted - N::magic;
  const Vec<T> r = (x - n * N::ln2_high) - n * N::ln2_low;
  constexpr double inverse[] = {1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                                1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  Vec<T> p = Vec<T>{} + static_cast<T>(inverse[N::degree]);
#pragma GCC unroll 16
  for (int i = N::degree - 1; i >= 0; --i) p = p * r + static_cast<T>(inverse[i]);
  return (Vec<T>)((Bits)p + ((Bits)shifted << N::mantissa));
}

// Thrown by a kernel for an index outside its memory.
struct Outside {
  const char *what;
};

inline void require(bool inside, const char *what) {
  if (!inside) throw Outside{what};
}

// Runs `work`; returns null on success, else the error message. No exception leaves the library.
template <typename Work>
const char *guarded(const Work &work) {
  try {
    work();
    return nullptr;
  } catch (const Outside &wrong) {
    return wrong.what;
  } catch (const std::bad_alloc &) {
    return "out of memory";
  } catch (const std::exception &) {
    return "an error of the C++ library";
  }
}

// Runs work(item, scratch) for every item on a few threads, chunk by chunk; each thread makes its own scratch. An
// exception in a thread is rethrown when all threads have stopped. If threads cannot be started, the running ones do
// all the work.
template <typename Make, typename Work>
void parallel(int64_t threads, int64_t items, int64_t chunk, const Make &make, const Work &work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr failure;
  std::mutex lock;
  auto run = [&] {
    try {
      auto scratch = make();
      for (int64_t begin; (begin = next.fetch_add(chunk)) < items;)
        for (int64_t item = begin; item < std::min(begin + chunk, items); ++item) work(item, scratch);
    } catch (...) {
      next = items;
      const std::lock_guard<std::mutex> held(lock);
      failure = std::current_exception();
    }
  };
  const int64_t useful = std::min(threads, (items + chunk - 1) / chunk);
  std::vector<std::thread> pool;
  pool.reserve(std::max<int64_t>(useful, 1));
  try {
    for (int64_t i = 1; i < useful; ++i) pool.emplace_back(run);
  } catch (const std::system_error &) {
  }
  run();
  for (auto &thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

template <typename Make, typename Work>
void parallel(int64_t threads, int64_t items, const Make &make, const Work &work) {
  parallel(threads, items, 1, make, work);
}

template <typename Work>
void parallel(int64_t threads, int64_t items, const Work &work) {
  parallel(threads, items, [] { return 0; }, [&](int64_t item, int) { work(item); });
}

}  // namespace
