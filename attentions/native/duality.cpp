// State space duality in chunks, forward and backward, for CPUs; see attentions/recurrent/ssd.py.
//
//   h[t] = exp(log[t]) · h[t - 1] + x[t] ⊗ b[t],   y[t] = c[t] · h[t]
//
// A chunk is a few small matrix products in the L1 and L2 caches: scores of queries and keys, masked by decays, times
// values; and the state. Backward recomputes scores and decays from the states that forward saved before each chunk,
// and processes the chunks from last to first. Nothing is computed as a difference of two running sums.

#include "vectors.hpp"

namespace {

// X rows; every `sharing` consecutive rows have the same b and c: x (X, M, E), log decays (X, M), b (X / sharing, M,
// S), c (X / sharing, R, M, S), y (X, R, M, E), and a state (X, S, E) that is read first and written last. E and S are
// multiples of the lanes.
template <typename T>
struct Duality {
  const T *x, *log, *b, *c;
  int64_t rows, sharing, repeats, keys, states, channels, chunk, parts;
  int threads;

  int64_t chunks() const { return (keys + chunk - 1) / chunk; }
};

// Work of one thread from end to end: rows that share b and c, or a part of the channels of one row.
struct Part {
  int64_t shared, index, first_row, rows, e, width;
};

template <typename T>
Part part_of(const Duality<T> &p, int64_t item) {
  const int64_t shared = item / p.parts, index = item % p.parts, lanes = Vector<T>::lanes;
  const auto cut = [&](int64_t i, int64_t whole) { return i * whole / p.parts; };
  if (p.sharing > 1) {
    const int64_t row = cut(index, p.sharing);
    return {shared, index, shared * p.sharing + row, cut(index + 1, p.sharing) - row, 0, p.channels};
  }
  const int64_t e = cut(index, p.channels / lanes) * lanes;
  return {shared, index, shared, 1, e, cut(index + 1, p.channels / lanes) * lanes - e};
}

// Left operand of a product: entry (r, k) is data[r · row + k · column].
template <typename T>
struct Left {
  const T *data;
  int64_t row, column;
};

enum class Shape { full, lower, upper };  // lower: only entries with k <= r count; upper: entries with k < r are zero

// out[r][:] = keep[r] · out[r][:] + sum over k in [from, to) of a[r][k] · b[k][:] for Rows rows and Parts vectors. With
// `corner`, row r continues to k < to + r and no further, because zero times NaN is NaN.
template <typename T, int Rows, int Parts>
void product_block(Left<T> a, const T *b, int64_t b_step, int64_t from, int64_t to, bool corner, const T *keep, T *out,
                   int64_t out_step) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> sum[Rows][Parts] = {};
  for (int64_t k = from; k < to; ++k) {
    Vec<T> row[Parts];
    for (int i = 0; i < Parts; ++i) row[i] = load(b + k * b_step + i * lanes);
    for (int r = 0; r < Rows; ++r)
      for (int i = 0; i < Parts; ++i) sum[r][i] += row[i] * a.data[r * a.row + k * a.column];
  }
  for (int k = 0; corner && k < Rows - 1; ++k)
    for (int i = 0; i < Parts; ++i) {
      const Vec<T> row = load(b + (to + k) * b_step + i * lanes);
      for (int r = k + 1; r < Rows; ++r) sum[r][i] += row * a.data[r * a.row + (to + k) * a.column];
    }
  for (int r = 0; r < Rows; ++r)
    for (int i = 0; i < Parts; ++i) {
      T *const at = out + r * out_step + i * lanes;
      store(at, keep ? sum[r][i] + load(at) * keep[r] : sum[r][i]);
    }
}

// out = keep · out + a · b, with a width that is a multiple of the lanes; a null `keep` overwrites.
template <typename T>
void product(Left<T> a, int64_t rows, const T *b, int64_t b_step, int64_t depth, const T *keep, T *out,
             int64_t out_step, int64_t width, Shape shape = Shape::full) {
  constexpr int lanes = Vector<T>::lanes;
  for (int64_t e = 0; e < width;) {
    const bool wide = e + 4 * lanes <= width;
    for (int64_t r = 0; r < rows;) {
      const bool tall = r + 4 <= rows, lower = shape == Shape::lower;
      const int64_t begin = shape == Shape::upper ? std::min(r, depth) : 0;
      const int64_t end = lower ? r + 1 : depth;
      const auto block = wide ? (tall ? product_block<T, 4, 4> : product_block<T, 1, 4>)
                              : (tall ? product_block<T, 4, 1> : product_block<T, 1, 1>);
      block({a.data + r * a.row, a.row, a.column}, b + e, b_step, begin, end, lower, keep ? keep + r : nullptr,
            out + r * out_step + e, out_step);
      r += tall ? 4 : 1;
    }
    e += wide ? 4 * lanes : lanes;
  }
}

// to[j][i] = from[i][j]; columns of `to` from `rows` to its step are zero.
template <typename T>
void turn(const T *from, int64_t from_step, int64_t rows, int64_t columns, T *to, int64_t to_step) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) to[j * to_step + i] = from[i * from_step + j];
    std::fill(to + j * to_step + rows, to + (j + 1) * to_step, T(0));
  }
}

template <typename T>
T dot(const T *x, const T *y, int64_t size) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < size; i += Vector<T>::lanes) sum += load(x + i) * load(y + i);
  T total = 0;
  for (int i = 0; i < Vector<T>::lanes; ++i) total += sum[i];
  return total;
}

// Per-thread data of a chunk: scores of every query head, b with keys as lanes, and for one row the decays inside the
// chunk and from its start.
template <typename T>
struct Chunk {
  int64_t step;  // chunk length in whole vectors
  std::vector<T> sums, decay, turned, scores, masked, from_start, scaled;

  explicit Chunk(const Duality<T> &p) {
    step = whole(p.chunk);
    sums.resize(step), decay.resize(step * step), turned.resize(p.states * step);
    scores.resize(p.repeats * step * step), masked.resize(step * step), from_start.resize(step);
    scaled.resize(p.states * step);
  }

  static int64_t whole(int64_t size) { return (size + Vector<T>::lanes - 1) / Vector<T>::lanes * Vector<T>::lanes; }
  T *scored(int64_t r) { return &scores[r * step * step]; }
  const T *last(int64_t size) const { return &decay[(size - 1) * step]; }

  void score(const Duality<T> &p, int64_t shared, int64_t begin, int64_t size) {
    turn(p.b + (shared * p.keys + begin) * p.states, p.states, size, p.states, turned.data(), step);
    for (int64_t r = 0; r < p.repeats; ++r) {
      const T *const c = p.c + ((shared * p.repeats + r) * p.keys + begin) * p.states;
      product<T>({c, p.states, 1}, size, turned.data(), step, p.states, nullptr, scored(r), step, step);
    }
  }

  // decay[i][j] = exp(log[j + 1] + … + log[i]): each key's sum is accumulated separately, so nothing cancels.
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
};

template <typename T>
void forward_chunk(const Duality<T> &p, Chunk<T> &w, Part part, int64_t row, int64_t begin, T *y, T *state) {
  const int64_t size = std::min(p.chunk, p.keys - begin), S = p.states, E = p.channels, step = w.step;
  const T *const x = p.x + (row * p.keys + begin) * E + part.e;
  w.decays(p.log + row * p.keys + begin, size);
  for (int64_t r = 0; r < p.repeats; ++r) {
    const T *const c = p.c + ((part.shared * p.repeats + r) * p.keys + begin) * S, *const scores = w.scored(r);
    T *const out = y + ((row * p.repeats + r) * p.keys + begin) * E + part.e;
    for (int64_t i = 0; i < size; ++i)  // selected, not multiplied: zero times NaN is NaN
      for (int64_t j = 0; j < step; ++j)
        w.masked[i * step + j] = j <= i ? scores[i * step + j] * w.decay[i * step + j] : T(0);
    product<T>({c, S, 1}, size, state, E, S, nullptr, out, E, part.width);
    product<T>({w.masked.data(), step, 1}, size, x, E, size, w.from_start.data(), out, E, part.width, Shape::lower);
  }
  const T *const last = w.last(size);
  for (int64_t s = 0; s < S; ++s)
    for (int64_t j = 0; j < size; ++j) w.scaled[s * step + j] = w.turned[s * step + j] * last[j];
  const std::vector<T> kept(S, w.from_start[size - 1]);
  product<T>({w.scaled.data(), step, 1}, S, x, E, size, kept.data(), state, E, part.width);
}

// `before` (X, chunks, S, E), which may be null, receives the state before each chunk.
template <typename T>
void forward(const Duality<T> &p, T *y, T *state, T *before) {
  parallel(p.threads, p.rows / p.sharing * p.parts, [&](int64_t item) {
    const Part part = part_of(p, item);
    Chunk<T> w(p);
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
      const int64_t begin = chunk * p.chunk;
      w.score(p, part.shared, begin, std::min(p.chunk, p.keys - begin));
      for (int64_t row = part.first_row; row < part.first_row + part.rows; ++row) {
        T *const own = state + row * p.states * p.channels + part.e;
        T *const kept = before ? before + (row * p.chunks() + chunk) * p.states * p.channels + part.e : nullptr;
        for (int64_t s = 0; before && s < p.states; ++s)
          std::copy_n(own + s * p.channels, part.width, kept + s * p.channels);
        forward_chunk(p, w, part, row, begin, y, own);
      }
    }
  });
}

// db (parts, X / sharing, M, S) and dc (parts, X / sharing, R, M, S) are summed over parts later, and so is dlog
// (parts, X, M) if the parts are of channels. dstate (X, S, E) holds the gradient of the last state on entry and that
// of the initial state on return.
template <typename T>
struct Gradients {
  const T *dy, *before;
  T *dx, *dlog, *db, *dc, *dstate;
};

// Data that backward keeps in addition to a chunk: x and the states with channels first, gradients of the scores, the
// products of keys and of queries with a state, and the queries' shares of the decay gradients.
template <typename T>
struct Back : Chunk<T> {
  std::vector<T> turned_x, state, dstate, dscores, with_state, sums_above, read, ones;

  Back(const Duality<T> &p, int64_t width) : Chunk<T>(p), ones(std::max(this->step, p.states), T(1)) {
    turned_x.resize(width * this->step), state.resize(width * p.states), dstate.resize(width * p.states);
    dscores.resize(this->step * this->step), with_state.resize(this->step * p.states);
    sums_above.resize(this->step), read.resize(this->step);
  }

  // From scores P and the products G of output gradients and values: P · decay, the factor of x, and G · decay, the
  // gradient of P. The decay over (j, i] has the gradient P · G · decay; dlog[t] sums those with j < t <= i.
  void mask(const T *scores, int64_t size, T *dlog) {
    constexpr int lanes = Vector<T>::lanes;
    std::fill(sums_above.begin(), sums_above.end(), T(0));
    for (int64_t i = size - 1; i >= 0; --i) {
      T *const p = &this->masked[i * this->step], *const g = &dscores[i * this->step];
      const T *const decay = &this->decay[i * this->step], *const score = scores + i * this->step;
      for (int64_t j = 0; j <= i; ++j) g[j] *= decay[j], sums_above[j] += score[j] * g[j], p[j] = score[j] * decay[j];
      std::fill(p + i + 1, p + this->step, T(0)), std::fill(g + i + 1, g + this->step, T(0));
      Vec<T> sum = {};
      for (int64_t j = 0; j + lanes <= i; j += lanes) sum += load(&sums_above[j]);
      T total = 0;
      for (int64_t j = i / lanes * lanes; j < i; ++j) total += sums_above[j];
      for (int k = 0; k < lanes; ++k) total += sum[k];
      dlog[i] += total;
    }
  }
};

// to[i][:] = keep · to[i][:] + scale[i] · from[i][:]; adds each row's product with `with`, also scaled, to dots.
template <typename T>
void add_scaled(const T *from, const T *scale, const T *with, int64_t rows, int64_t width, bool keep, T *to, T *dots) {
  for (int64_t i = 0; i < rows; ++i) {
    const T *const row = from + i * width;
    T *const out = to + i * width;
    for (int64_t s = 0; s < width; ++s) out[s] = (keep ? out[s] : T(0)) + scale[i] * row[s];
    dots[i] += scale[i] * dot(row, with + i * width, width);
  }
}

template <typename T>
void backward_row(const Duality<T> &p, const Gradients<T> &g, Back<T> &w, Part part, int64_t row, int64_t chunk) {
  const int64_t S = p.states, E = p.channels, W = part.width, step = w.step, begin = chunk * p.chunk;
  const int64_t size = std::min(p.chunk, p.keys - begin), at = row * p.keys + begin;
  const int64_t shared = part.shared * p.keys + begin, all = part.index * (p.rows / p.sharing) * p.keys;
  const bool again = row > part.first_row;  // db and dc hold the sums of earlier rows
  const T *const x = p.x + at * E + part.e, *const b = p.b + shared * S, *const none = nullptr;
  const T *const state = g.before + (row * p.chunks() + chunk) * S * E + part.e;
  T *const dstate = g.dstate + row * S * E + part.e, *const dx = g.dx + at * E + part.e;
  T *const db = g.db + (all + shared) * S, *const dlog = g.dlog + (p.sharing > 1 ? 0 : part.index * p.rows * p.keys) + at;
  w.decays(p.log + at, size);
  const T *const last = w.last(size), *const start = w.from_start.data(), *const ones = w.ones.data();
  turn(x, E, size, W, w.turned_x.data(), step);
  turn(state, E, S, W, w.state.data(), S);
  turn(dstate, E, S, W, w.dstate.data(), S);

  // Through the state after the chunk: what keys wrote to it, and what it kept.
  product({b, S, 1}, size, dstate, E, S, none, dx, E, W);
  product({x, E, 1}, size, w.dstate.data(), S, W, none, w.with_state.data(), S, S);
  std::fill(w.read.begin(), w.read.end(), T(0));
  add_scaled(w.with_state.data(), last, b, size, S, again, db, w.read.data());
  T sum = start[size - 1] * dot(w.state.data(), w.dstate.data(), W * S);
  for (int64_t i = 0; i < size; ++i) {
    dlog[i] = sum;
    sum += w.read[i];
  }

  std::fill(w.read.begin(), w.read.end(), T(0));
  for (int64_t r = 0; r < p.repeats; ++r) {
    const int64_t query = (part.shared * p.repeats + r) * p.keys + begin;
    const T *const c = p.c + query * S, *const dy = g.dy + ((row * p.repeats + r) * p.keys + begin) * E + part.e;
    T *const dc = g.dc + (all * p.repeats + query) * S;
    product({dy, E, 1}, size, w.state.data(), S, W, none, w.with_state.data(), S, S);
    add_scaled(w.with_state.data(), start, c, size, S, again, dc, w.read.data());
    product({dy, E, 1}, size, w.turned_x.data(), step, W, none, w.dscores.data(), step, step);
    w.mask(w.scored(r), size, dlog);
    product<T>({w.masked.data(), 1, step}, size, dy, E, size, r ? ones : last, dx, E, W, Shape::upper);
    product<T>({w.dscores.data(), 1, step}, size, c, S, size, ones, db, S, S, Shape::upper);
    product<T>({w.dscores.data(), step, 1}, size, b, S, size, ones, dc, S, S, Shape::lower);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t s = 0; s < S; ++s) w.with_state[i * S + s] = start[i] * c[i * S + s];
    const std::vector<T> kept(S, r ? T(1) : start[size - 1]);
    product<T>({w.with_state.data(), 1, S}, S, dy, E, size, kept.data(), dstate, E, W);
  }
  sum = 0;
  for (int64_t i = size - 1; i >= 0; --i) dlog[i] += sum += w.read[i];
}

template <typename T>
void backward(const Duality<T> &p, const Gradients<T> &g) {
  parallel(p.threads, p.rows / p.sharing * p.parts, [&](int64_t item) {
    const Part part = part_of(p, item);
    Back<T> w(p, part.width);
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
      w.score(p, part.shared, chunk * p.chunk, std::min(p.chunk, p.keys - chunk * p.chunk));
      for (int64_t row = part.first_row; row < part.first_row + part.rows; ++row)
        backward_row(p, g, w, part, row, chunk);
    }
  });
}

// `sizes`: rows, sharing, repeats, keys, states, channels, chunk, parts, threads.
template <typename T>
Duality<T> duality(const T *x, const T *log, const T *b, const T *c, const int64_t *sizes) {
  return {x,        log,      b,        c,        sizes[0], sizes[1], sizes[2],
          sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], static_cast<int>(sizes[8])};
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
  extern "C" const char *duality_forward_##NAME(const T *x, const T *log, const T *b, const T *c,                     \
                                                const int64_t *sizes, T *y, T *state, T *before) {                    \
    return guarded([&] { forward(duality(x, log, b, c, sizes), y, state, before); });                                 \
  }                                                                                                                   \
  extern "C" const char *duality_backward_##NAME(const T *x, const T *log, const T *b, const T *c,                    \
                                                 const int64_t *sizes, const T *dy, const T *before, T *dx, T *dlog,  \
                                                 T *db, T *dc, T *dstate) {                                           \
    const Gradients<T> gradients{dy, before, dx, dlog, db, dc, dstate};                                               \
    return guarded([&] { backward(duality(x, log, b, c, sizes), gradients); });                                       \
  }

EXPORT(float, float32)
EXPORT(double, float64)
