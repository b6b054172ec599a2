// Selective scan, forward and backward, for CPUs. Uses only the C++ standard library.
//
//   h[t] = exp(delta[t] · a) · h[t - 1] + delta[t] · u[t] · b[t],   y[t] = c[t] · h[t]
//
// Channels are lanes, so the forward pass needs no sums across lanes and every load is a cache line. The 16 states of a
// vector of channels stay in registers for the whole sequence. Backward recomputes the states from checkpoints that
// forward saved every kChunk steps. The sums over channels for b and c are accumulated per lane, and across lanes once
// per chunk.

#include "vectors.hpp"

namespace {

constexpr int kStates = 16;
constexpr int kChunk = 32;  // backward's scratch fits in the L2 cache; checkpoints take half the bytes of u

// X rows of G kinds, R queries per key: u, delta (X, M, E), a (G, S, E), b (X, M, S), c (X, R, N, S). E is a multiple
// of the lanes. Queries are the last N of the M positions.
template <typename T>
struct Scan {
  const T *u, *delta, *a, *b, *c;
  int64_t rows, kinds, repeats, keys, queries, channels;
  int threads;

  int64_t past() const { return keys - queries; }
  int64_t chunks() const { return (keys + kChunk - 1) / kChunk; }
  int64_t blocks() const { return channels / Vector<T>::lanes; }
  int64_t wide(int64_t row, int64_t t, int64_t e) const { return (row * keys + t) * channels + e; }
  int64_t query(int64_t row, int64_t r, int64_t t) const { return (row * repeats + r) * queries + t - past(); }
  int64_t state(int64_t row, int64_t chunk, int64_t s, int64_t e) const {
    return ((row * chunks() + chunk) * kStates + s) * channels + e;
  }
  const T *rates(int64_t row, int64_t e) const { return a + row % kinds * kStates * channels + e; }
};

// One vector of channels of one row. `last` (X, S, E) holds the initial state on entry and the last state on return;
// `states` (X, chunks, S, E), which may be null, receives the state before each chunk.
template <typename T>
void forward_channels(const Scan<T> &p, int64_t row, int64_t e, T *y, T *last, T *states) {
  Vec<T> h[kStates];
  T *const own = last + row * kStates * p.channels + e;
  alignas(kVectorBytes) Vec<T> a[kStates];
  for (int s = 0; s < kStates; ++s) h[s] = load(own + s * p.channels), a[s] = load(p.rates(row, e) + s * p.channels);
  for (int64_t t = 0; t < p.keys; ++t) {
    if (states && t % kChunk == 0)
      for (int s = 0; s < kStates; ++s) store(states + p.state(row, t / kChunk, s, e), h[s]);
    const Vec<T> delta = load(p.delta + p.wide(row, t, e)), input = delta * load(p.u + p.wide(row, t, e));
    const T *const b = p.b + (row * p.keys + t) * kStates;
#pragma GCC unroll 16
    for (int s = 0; s < kStates; ++s) h[s] = exponential<T>(delta * a[s]) * h[s] + input * b[s];
    if (t < p.past()) continue;
    for (int64_t r = 0; r < p.repeats; ++r) {
      const T *const c = p.c + p.query(row, r, t) * kStates;
      Vec<T> even = {}, odd = {};
#pragma GCC unroll 16
      for (int s = 0; s < kStates; s += 2) even += h[s] * c[s], odd += h[s + 1] * c[s + 1];
      store(y + p.query(row, r, t) * p.channels + e, even + odd);
    }
  }
  for (int s = 0; s < kStates; ++s) store(own + s * p.channels, h[s]);
}

template <typename T>
void forward(const Scan<T> &p, T *y, T *last, T *states) {
  parallel(p.threads, p.rows * p.blocks(), [&](int64_t item) {
    forward_channels(p, item / p.blocks(), item % p.blocks() * Vector<T>::lanes, y, last, states);
  });
}

// Scratch memory of one thread of backward. Per chunk: the states before each step, the decays, and the sums for b and
// c per lane. Per vector of channels: the gradient of the state from later chunks.
template <typename T>
struct Scratch {
  std::vector<T> before, decay, db, dc, carry;

  Scratch(const Scan<T> &p, int64_t blocks) {
    const int64_t step = kStates * Vector<T>::lanes;
    before.resize((kChunk + 1) * step), decay.resize(kChunk * step), db.resize(kChunk * step);
    dc.resize(p.repeats * kChunk * step), carry.resize(blocks * step);
  }
  static int64_t at(int64_t i, int64_t s) { return (i * kStates + s) * Vector<T>::lanes; }
};

template <typename T>
struct Gradients {
  const T *dy, *states;
  T *du, *ddelta, *da, *db, *dc;  // da (X, S, E); db (parts, X, M, S) and dc (parts, X, R, N, S) are summed later
  int64_t parts;
};

template <typename T>
void recompute(const Scan<T> &p, const Gradients<T> &g, Scratch<T> &w, int64_t row, int64_t chunk, int64_t e) {
  const int64_t begin = chunk * kChunk, size = std::min<int64_t>(kChunk, p.keys - begin);
  Vec<T> h[kStates];
  alignas(kVectorBytes) Vec<T> a[kStates];
  for (int s = 0; s < kStates; ++s) {
    h[s] = load(g.states + p.state(row, chunk, s, e)), a[s] = load(p.rates(row, e) + s * p.channels);
    store(&w.before[w.at(0, s)], h[s]);
  }
  for (int64_t i = 0; i < size; ++i) {
    const int64_t at = p.wide(row, begin + i, e);
    const Vec<T> delta = load(p.delta + at), input = delta * load(p.u + at);
    const T *const b = p.b + (row * p.keys + begin + i) * kStates;
#pragma GCC unroll 16
    for (int s = 0; s < kStates; ++s) {
      const Vec<T> decay = exponential<T>(delta * a[s]);
      h[s] = decay * h[s] + input * b[s];
      store(&w.decay[w.at(i, s)], decay);
      store(&w.before[w.at(i + 1, s)], h[s]);
    }
  }
}

template <typename T>
void backward_channels(const Scan<T> &p, const Gradients<T> &g, Scratch<T> &w, int64_t row, int64_t chunk, int64_t e,
                       T *carry) {
  constexpr int lanes = Vector<T>::lanes;
  const int64_t begin = chunk * kChunk, size = std::min<int64_t>(kChunk, p.keys - begin);
  const T *const a = p.rates(row, e);
  T *const da = g.da + row * kStates * p.channels + e;
  Vec<T> adjoint[kStates];
  for (int s = 0; s < kStates; ++s) adjoint[s] = load(carry + s * lanes);
  for (int64_t i = size - 1; i >= 0; --i) {
    const int64_t t = begin + i, at = p.wide(row, t, e);
    for (int64_t r = 0; t >= p.past() && r < p.repeats; ++r) {
      const Vec<T> dy = load(g.dy + p.query(row, r, t) * p.channels + e);
      const T *const c = p.c + p.query(row, r, t) * kStates;
      T *const dc = &w.dc[w.at(r * kChunk + i, 0)];
#pragma GCC unroll 16
      for (int s = 0; s < kStates; ++s) {
        adjoint[s] += dy * c[s];
        store(dc + s * lanes, load(dc + s * lanes) + dy * load(&w.before[w.at(i + 1, s)]));
      }
    }
    const Vec<T> delta = load(p.delta + at), u = load(p.u + at), input = delta * u;
    const T *const b = p.b + (row * p.keys + t) * kStates;
    Vec<T> into = {}, through_rates = {};
#pragma GCC unroll 16
    for (int s = 0; s < kStates; ++s) {
      T *const db = &w.db[w.at(i, s)];
      into += adjoint[s] * b[s];
      store(db, load(db) + adjoint[s] * input);
      adjoint[s] *= load(&w.decay[w.at(i, s)]);
      const Vec<T> through = adjoint[s] * load(&w.before[w.at(i, s)]);
      through_rates += through * load(a + s * p.channels);
      store(da + s * p.channels, load(da + s * p.channels) + through * delta);
    }
    store(g.du + at, into * delta);
    store(g.ddelta + at, into * u + through_rates);
  }
  for (int s = 0; s < kStates; ++s) store(carry + s * lanes, adjoint[s]);
}

// to[s] = sum over lanes of from[s][:]
template <typename T>
void sum_lanes(const T *from, T *to) {
  for (int s = 0; s < kStates; ++s) {
    T sum = 0;
    for (int i = 0; i < Vector<T>::lanes; ++i) sum += from[s * Vector<T>::lanes + i];
    to[s] = sum;
  }
}

// One row and one part of its channels; each part writes to its own db and dc.
template <typename T>
void backward_part(const Scan<T> &p, const Gradients<T> &g, int64_t row, int64_t part) {
  const int64_t first = part * p.blocks() / g.parts, blocks = (part + 1) * p.blocks() / g.parts - first;
  Scratch<T> w(p, blocks);
  T *const db = g.db + part * p.rows * p.keys * kStates;
  T *const dc = g.dc + part * p.rows * p.repeats * p.queries * kStates;
  for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
    std::fill(w.db.begin(), w.db.end(), T(0)), std::fill(w.dc.begin(), w.dc.end(), T(0));
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t e = (first + i) * Vector<T>::lanes;
      recompute(p, g, w, row, chunk, e);
      backward_channels(p, g, w, row, chunk, e, &w.carry[w.at(i, 0)]);
    }
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, p.keys);
    for (int64_t t = begin; t < end; ++t) {
      sum_lanes(&w.db[w.at(t - begin, 0)], db + (row * p.keys + t) * kStates);
      for (int64_t r = 0; t >= p.past() && r < p.repeats; ++r)
        sum_lanes(&w.dc[w.at(r * kChunk + t - begin, 0)], dc + p.query(row, r, t) * kStates);
    }
  }
}

template <typename T>
void backward(const Scan<T> &p, const Gradients<T> &g) {
  parallel(p.threads, p.rows * g.parts, [&](int64_t item) { backward_part(p, g, item / g.parts, item % g.parts); });
}

// `sizes`: rows, kinds, repeats, keys, queries, channels, threads.
template <typename T>
Scan<T> scan(const T *u, const T *delta, const T *a, const T *b, const T *c, const int64_t *sizes) {
  return {u, delta, a, b, c, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], static_cast<int>(sizes[6])};
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
  extern "C" const char *scan_forward_##NAME(const T *u, const T *delta, const T *a, const T *b, const T *c,          \
                                      const int64_t *sizes, T *y, T *last, T *states) {                               \
    return guarded([&] { forward(scan(u, delta, a, b, c, sizes), y, last, states); });                                \
  }                                                                                                                   \
  extern "C" const char *scan_backward_##NAME(const T *u, const T *delta, const T *a, const T *b, const T *c,         \
                                       const int64_t *sizes, const T *dy, const T *states, T *du, T *ddelta, T *da,   \
                                       T *db, T *dc, int64_t parts) {                                                 \
    const Gradients<T> gradients{dy, states, du, ddelta, da, db, dc, parts};                                          \
    return guarded([&] { backward(scan(u, delta, a, b, c, sizes), gradients); });                                     \
  }

EXPORT(float, float32)
EXPORT(double, float64)

extern "C" int64_t scan_chunk() { return kChunk; }
