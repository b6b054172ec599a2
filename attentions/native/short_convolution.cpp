// Short depthwise convolution over time and SiLU, forward and backward, for CPUs.
//
//   z[t] = bias + sum over k < W of weight[k] · x[t - W + 1 + k],   y[t] = z[t] · sigmoid(z[t])
//
// Channels are lanes and stay the last axis, so no input is transposed; each pass reads its inputs once. Threads take
// blocks of positions. Backward recomputes z.

#include "vectors.hpp"

namespace {

constexpr int64_t kBlock = 64;  // positions per unit of work of a thread: their gradients stay in the L2 cache

// x: position t of row b begins at x + b · row_step + t · step; y (B, N, C), weight (W, C), bias (C).
template <typename T>
struct Convolution {
  const T *x, *weight, *bias;
  int64_t rows, positions, channels, width, row_step, step;
  int threads;

  int64_t blocks() const { return (positions + kBlock - 1) / kBlock; }
  const T *at(int64_t row, int64_t t) const { return x + row * row_step + t * step; }
};

// The channels from c on, at most one vector of them; the other lanes are zero.
template <typename T>
struct Channels {
  int64_t c, count;

  Channels(int64_t c, int64_t channels) : c(c), count(std::min<int64_t>(Vector<T>::lanes, channels - c)) {}
  Vec<T> of(const T *row) const {
    if (count == Vector<T>::lanes) return load(row + c);
    Vec<T> x = {};
    std::memcpy(&x, row + c, count * sizeof(T));
    return x;
  }
  void to(T *row, Vec<T> x) const { std::memcpy(row + c, &x, count * sizeof(T)); }
};

template <typename T>
Vec<T> convolved(const Convolution<T> &p, int64_t row, int64_t t, Channels<T> lanes) {
  Vec<T> z = lanes.of(p.bias);
  for (int64_t k = std::max<int64_t>(0, p.width - 1 - t); k < p.width; ++k)
    z += lanes.of(p.weight + k * p.channels) * lanes.of(p.at(row, t - p.width + 1 + k));
  return z;
}

template <typename T>
void forward(const Convolution<T> &p, T *y) {
  parallel(p.threads, p.rows * p.blocks(), [&](int64_t item) {
    const int64_t row = item / p.blocks(), begin = item % p.blocks() * kBlock;
    for (int64_t t = begin; t < std::min(begin + kBlock, p.positions); ++t)
      for (int64_t c = 0; c < p.channels; c += Vector<T>::lanes) {
        const Channels<T> lanes(c, p.channels);
        const Vec<T> z = convolved(p, row, t, lanes);
        lanes.to(y + (row * p.positions + t) * p.channels, z / (T(1) + exponential<T>(-z)));
      }
  });
}

// dx (B, N, C); dweight (items, W, C) and dbias (items, C) are summed over the rows · blocks items later.
template <typename T>
void backward(const Convolution<T> &p, const T *dy, T *dx, T *dweight, T *dbias) {
  parallel(p.threads, p.rows * p.blocks(), [&](int64_t item) {
    const int64_t row = item / p.blocks(), begin = item % p.blocks() * kBlock, C = p.channels;
    const int64_t end = std::min(begin + kBlock, p.positions), after = std::min(end + p.width - 1, p.positions);
    std::vector<T> dz((after - begin) * C);
    T *const own_weight = dweight + item * p.width * C, *const own_bias = dbias + item * C;
    std::fill(own_weight, own_weight + p.width * C, T(0)), std::fill(own_bias, own_bias + C, T(0));
    for (int64_t t = begin; t < after; ++t)
      for (int64_t c = 0; c < C; c += Vector<T>::lanes) {
        const Channels<T> lanes(c, C);
        const Vec<T> z = convolved(p, row, t, lanes), gate = T(1) / (T(1) + exponential<T>(-z));
        const Vec<T> d = lanes.of(dy + (row * p.positions + t) * C) * gate * (T(1) + z * (T(1) - gate));
        lanes.to(&dz[(t - begin) * C], d);
        if (t >= end) continue;
        lanes.to(own_bias, lanes.of(own_bias) + d);
        for (int64_t k = std::max<int64_t>(0, p.width - 1 - t); k < p.width; ++k) {
          T *const to = own_weight + k * C;
          lanes.to(to, lanes.of(to) + d * lanes.of(p.at(row, t - p.width + 1 + k)));
        }
      }
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = 0; c < C; c += Vector<T>::lanes) {
        const Channels<T> lanes(c, C);
        Vec<T> sum = {};
        for (int64_t k = 0; k < p.width && t + k < after; ++k)
          sum += lanes.of(p.weight + (p.width - 1 - k) * C) * lanes.of(&dz[(t + k - begin) * C]);
        lanes.to(dx + (row * p.positions + t) * C, sum);
      }
  });
}

// `sizes`: rows, positions, channels, width, row step, step, threads.
template <typename T>
Convolution<T> convolution(const T *x, const T *weight, const T *bias, const int64_t *sizes) {
  return {x,        weight,   bias,     sizes[0], sizes[1],
          sizes[2], sizes[3], sizes[4], sizes[5], static_cast<int>(sizes[6])};
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
  extern "C" const char *short_convolution_forward_##NAME(const T *x, const T *weight, const T *bias,                 \
                                                   const int64_t *sizes, T *y) {                                      \
    return guarded([&] { forward(convolution(x, weight, bias, sizes), y); });                                         \
  }                                                                                                                   \
  extern "C" const char *short_convolution_backward_##NAME(const T *x, const T *weight, const T *bias,                \
                                                    const int64_t *sizes, const T *dy, T *dx, T *dweight,             \
                                                    T *dbias) {                                                       \
    return guarded([&] { backward(convolution(x, weight, bias, sizes), dy, dx, dweight, dbias); });                   \
  }

EXPORT(float, float32)
EXPORT(double, float64)

extern "C" int64_t short_convolution_block() { return kBlock; }
