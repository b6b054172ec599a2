// Selective scan, forward and backward, and state space duality, forward, for CPUs. No library beyond the C++
// standard's.
//
//   h[t] = exp(delta[t] · a) · h[t - 1] + delta[t] · u[t] · b[t],   y[t] = c[t] · h[t]
//
// Channels are lanes, so that nothing is summed across lanes on the way forward and every load is a cache line; the
// 16 states of a vector of channels stay in registers for the whole sequence. Backward computes the states anew from
// checkpoints that forward left every kChunk steps. The sums over channels for b and c are taken lane by lane, and
// across lanes once a chunk.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int kVectorBytes = 64;
#else
constexpr int kVectorBytes = 32;
#endif
constexpr int kStates = 16;
constexpr int kChunk = 32;  // the scratch of backward fits the L2 cache, checkpoints take half the bytes of u

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

// 2^n · p(r) with Taylor's polynomial for |r| <= ln(2) / 2; what underflows gives the smallest normal number.
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

// Runs work(item) for every item on a few threads, one by one.
template <typename Work>
void parallel(int threads, int64_t items, const Work &work) {
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t item; (item = next.fetch_add(1)) < items;) work(item);
  };
  std::vector<std::thread> pool;
  for (int64_t i = 1; i < std::min<int64_t>(threads, items); ++i) pool.emplace_back(run);
  run();
  for (auto &thread : pool) thread.join();
}

// X rows of G kinds, R queries a key: u, delta (X, M, E), a (G, S, E), b (X, M, S), c (X, R, N, S). E is a multiple
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

// One vector of channels of one row. `last` (X, S, E) holds the state to start from and then the last one;
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

// What one thread of backward works with: of a chunk, the states before each step, the decays, and the sums for b and
// c lane by lane; of each vector of channels, the gradient of the state that later chunks left.
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

// One row and one part of its channels; the parts write to db and dc of their own.
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

// State space duality in chunks, as attentions/ssd.py describes it: x (X, M, E), log decays (X, M), b (X, M, S), c (X, R,
// M, S), y (X, R, M, E), and a state (X, S, E) that is read first and written last. E is a multiple of the lanes.
template <typename T>
struct Duality {
  const T *x, *log, *b, *c;
  int64_t rows, repeats, keys, states, channels, chunk, parts;
  int threads;
};

// out[r][:] = keep[r] · out[r][:] + sum over k < depth of a[r][k] · b[k][:] for Rows rows and Parts vectors.
template <typename T, int Rows, int Parts>
void product_block(const T *a, int64_t a_step, const T *b, int64_t b_step, int64_t depth, const T *keep, T *out,
                   int64_t out_step) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> sum[Rows][Parts] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[Parts];
    for (int i = 0; i < Parts; ++i) row[i] = load(b + k * b_step + i * lanes);
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < Parts; ++i) sum[r][i] += row[i] * a[r * a_step + k];
  }
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < Parts; ++i) {
      T *const to = out + r * out_step + i * lanes;
      store(to, keep ? sum[r][i] + load(to) * keep[r] : sum[r][i]);
    }
}

// A null `keep` overwrites. With `triangle`, row r has a[r][k] = 0 for k > r, and only a block's own depth is summed.
template <typename T>
void product(const T *a, int64_t a_step, int64_t rows, const T *b, int64_t b_step, int64_t depth, const T *keep, T *out,
             int64_t out_step, int64_t width, bool triangle) {
  constexpr int lanes = Vector<T>::lanes;
  for (int64_t e = 0; e < width;) {
    const bool wide = e + 4 * lanes <= width;
    for (int64_t r = 0; r < rows;) {
      const bool tall = r + 4 <= rows;
      const int64_t deep = triangle ? std::min(depth, r + (tall ? 4 : 1)) : depth;
      const T *const kept = keep ? keep + r : nullptr, *const from = a + r * a_step, *const with = b + e;
      T *const to = out + r * out_step + e;
      if (wide && tall)
        product_block<T, 4, 4>(from, a_step, with, b_step, deep, kept, to, out_step);
      else if (wide)
        product_block<T, 1, 4>(from, a_step, with, b_step, deep, kept, to, out_step);
      else if (tall)
        product_block<T, 4, 1>(from, a_step, with, b_step, deep, kept, to, out_step);
      else
        product_block<T, 1, 1>(from, a_step, with, b_step, deep, kept, to, out_step);
      r += tall ? 4 : 1;
    }
    e += wide ? 4 * lanes : lanes;
  }
}

// What a thread keeps of a chunk: its decays, b with keys as lanes, scores, and decays from its start.
template <typename T>
struct Chunk {
  int64_t step;  // the chunk in whole vectors
  std::vector<T> sums, decay, turned, scores, from_start;

  explicit Chunk(const Duality<T> &p) {
    step = (p.chunk + Vector<T>::lanes - 1) / Vector<T>::lanes * Vector<T>::lanes;
    sums.resize(step), decay.resize(step * step), turned.resize(p.states * step), scores.resize(step * step);
    from_start.resize(step);
  }

  // decay[i][j] = exp(log[j + 1] + … + log[i]): each key's sum runs by itself, so that nothing cancels.
  void decays(const T *log, int64_t size) {
    constexpr int lanes = Vector<T>::lanes;
    std::fill(sums.begin(), sums.end(), T(0));
    T total = 0;
    for (int64_t i = 0; i < size; ++i) {
      from_start[i] = total += log[i];
      for (int64_t j = 0; j < i; ++j) sums[j] += log[i];
      for (int64_t j = 0; j <= i; j += lanes) store(&decay[i * step + j], exponential<T>(load(&sums[j])));
    }
    for (int64_t i = 0; i < step; i += lanes) store(&from_start[i], exponential<T>(load(&from_start[i])));
  }

  void turn(const T *b, int64_t size, int64_t states) {
    for (int64_t s = 0; s < states; ++s)
      for (int64_t j = 0; j < step; ++j) turned[s * step + j] = j < size ? b[j * states + s] : T(0);
  }
};

template <typename T>
void duality_chunk(const Duality<T> &p, Chunk<T> &w, int64_t row, int64_t begin, int64_t e, int64_t width, T *y,
                   T *state) {
  const int64_t size = std::min(p.chunk, p.keys - begin), S = p.states, E = p.channels;
  const T *const x = p.x + (row * p.keys + begin) * E + e;
  w.decays(p.log + row * p.keys + begin, size);
  w.turn(p.b + (row * p.keys + begin) * S, size, S);
  for (int64_t r = 0; r < p.repeats; ++r) {
    const int64_t at = (row * p.repeats + r) * p.keys + begin;
    const T *const c = p.c + at * S;
    T *const out = y + at * E + e;
    product<T>(c, S, size, w.turned.data(), w.step, S, nullptr, w.scores.data(), w.step, w.step, false);
    for (int64_t i = 0; i < size; ++i)  // selected and not multiplied: zero times NaN is NaN
      for (int64_t j = 0; j < w.step; ++j)
        w.scores[i * w.step + j] = j <= i ? w.scores[i * w.step + j] * w.decay[i * w.step + j] : T(0);
    product<T>(c, S, size, state, E, S, nullptr, out, E, width, false);
    product<T>(w.scores.data(), w.step, size, x, E, size, w.from_start.data(), out, E, width, true);
  }
  const T *const last = &w.decay[(size - 1) * w.step];
  for (int64_t s = 0; s < S; ++s)
    for (int64_t j = 0; j < size; ++j) w.turned[s * w.step + j] *= last[j];
  const std::vector<T> kept(S, w.from_start[size - 1]);
  product<T>(w.turned.data(), w.step, S, x, E, size, kept.data(), state, E, width, false);
}

// A row is one sequence of chunks; parts of its channels may go to several threads, each with scores of its own.
template <typename T>
void duality(const Duality<T> &p, T *y, T *state) {
  constexpr int lanes = Vector<T>::lanes;
  parallel(p.threads, p.rows * p.parts, [&](int64_t item) {
    const int64_t row = item / p.parts, part = item % p.parts, blocks = p.channels / lanes;
    const int64_t e = part * blocks / p.parts * lanes, width = (part + 1) * blocks / p.parts * lanes - e;
    Chunk<T> w(p);
    for (int64_t begin = 0; begin < p.keys; begin += p.chunk)
      duality_chunk(p, w, row, begin, e, width, y, state + row * p.states * p.channels + e);
  });
}

// `sizes` rows, kinds, repeats, keys, queries, channels, threads.
template <typename T>
Scan<T> scan(const T *u, const T *delta, const T *a, const T *b, const T *c, const int64_t *sizes) {
  return {u, delta, a, b, c, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], static_cast<int>(sizes[6])};
}

}  // namespace

#define EXPORT(T, NAME)                                                                                              \
  extern "C" void scan_forward_##NAME(const T *u, const T *delta, const T *a, const T *b, const T *c,                \
                                      const int64_t *sizes, T *y, T *last, T *states) {                              \
    forward(scan(u, delta, a, b, c, sizes), y, last, states);                                                        \
  }                                                                                                                  \
  extern "C" void scan_backward_##NAME(const T *u, const T *delta, const T *a, const T *b, const T *c,               \
                                       const int64_t *sizes, const T *dy, const T *states, T *du, T *ddelta, T *da,  \
                                       T *db, T *dc, int64_t parts) {                                                \
    backward(scan(u, delta, a, b, c, sizes), Gradients<T>{dy, states, du, ddelta, da, db, dc, parts});               \
  }                                                                                                                  \
  extern "C" void duality_##NAME(const T *x, const T *log, const T *b, const T *c, const int64_t *sizes, T *y,       \
                                 T *state) {                                                                         \
    duality(Duality<T>{x, log, b, c, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6],           \
                       static_cast<int>(sizes[7])},                                                                  \
            y, state);                                                                                               \
  }

EXPORT(float, float32)
EXPORT(double, float64)

extern "C" int64_t scan_chunk() { return kChunk; }
