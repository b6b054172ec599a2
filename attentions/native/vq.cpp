// Vector-quantised attention, forward, for CPUs: nearest codes, and softmax attention to keys that are codewords. Uses
// only the C++ standard library.
//
//   out[i] = sum_s w[i, s] · sums[s] / sum_s w[i, s] · counts[s],   w[i, s] = exp(score of query i and code s)
//
// `counts` and `sums` cover the keys and values of each code up to position i. They are kept as of the start of a block
// of kBlock positions; within the block the weight of a key is looked up by its code. Threads take chunks of a long
// sequence: a first pass sums each chunk, and the running total, in double, is the starting state of each chunk.
//
// Both products, queries by codewords and weights by sums, have queries as rows and codes or channels as lanes, with
// kRows by kWide vectors of accumulators in registers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "vectors.hpp"

namespace {

#ifdef __AVX512F__
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
constexpr int kRows = 6;
constexpr int64_t kBlock = 4 * kRows;  // queries whose weights fit in the L1 and L2 caches
constexpr int64_t kChunk = 4096;       // positions per unit of work; chunk starts are S/kChunk the size of the values
constexpr int64_t kSlice = 256;        // rows per unit of work of a thread if rows are independent

template <typename T>
int64_t padded(int64_t n) {
  return (n + Vector<T>::lanes - 1) / Vector<T>::lanes * Vector<T>::lanes;
}

// exp for x <= 0, zero on underflow.
template <typename T>
inline Vec<T> weight(Vec<T> x) {
  return x > Vec<T>{} + Number<T>::low ? exponential<T>(x) : Vec<T>{};
}

// c = a · b for R rows of a (stride `lda`) and W vectors of columns of b (stride `ldb`), starting from `bias` or zero;
// passes the accumulators to `take`.
template <typename T, int R, int W, typename Take>
inline void tile(const T *a, int64_t lda, const T *b, int64_t ldb, int64_t inner, const T *bias, const Take &take) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> sum[R][W];
  for (int r = 0; r < R; ++r)
    for (int w = 0; w < W; ++w) sum[r][w] = bias ? load(bias + w * lanes) : Vec<T>{};
  for (int64_t i = 0; i < inner; ++i) {
    Vec<T> row[W];
    for (int w = 0; w < W; ++w) row[w] = load(b + i * ldb + w * lanes);
    for (int r = 0; r < R; ++r) {
      const T x = a[r * lda + i];
      for (int w = 0; w < W; ++w) sum[r][w] += row[w] * x;
    }
  }
  take(sum);
}

// Calls f with the number of rows, at most kRows, as a compile-time constant.
template <int R = kRows, typename F>
inline void with_rows(int64_t rows, const F &f) {
  if constexpr (R == 1) {
    f(std::integral_constant<int, 1>{});
  } else {
    if (rows >= R) return f(std::integral_constant<int, R>{});
    with_rows<R - 1>(rows, f);
  }
}

// All of a · b, in tiles: calls `take(row, column, accumulators)`. `columns` is a multiple of the lanes.
template <typename T, typename Take>
void product(const T *a, int64_t lda, int64_t rows, const T *b, int64_t ldb, int64_t columns, int64_t inner,
             const T *bias, const Take &take) {
  constexpr int64_t lanes = Vector<T>::lanes;
  for (int64_t column = 0; column < columns;) {
    const bool wide = columns - column >= kWide * lanes;
    for (int64_t row = 0; row < rows; row += kRows)
      with_rows(rows - row, [&](auto r) {
        const T *from = bias ? bias + column : nullptr;
        auto to = [&](auto &sum) { take(row, column, sum); };
        if (wide) tile<T, r.value, kWide>(a + row * lda, lda, b + column, ldb, inner, from, to);
        else tile<T, r.value, 1>(a + row * lda, lda, b + column, ldb, inner, from, to);
      });
    column += (wide ? kWide : 1) * lanes;
  }
}

template <typename T, size_t R, size_t W, typename V>
inline void put(V (&sum)[R][W], T *to, int64_t stride) {
  for (size_t r = 0; r < R; ++r)
    for (size_t w = 0; w < W; ++w) store(to + r * stride + w * Vector<T>::lanes, sum[r][w]);
}

// Returns a codebook (S, D) as (D, S), zero-padded to a multiple of the lanes.
template <typename T>
std::vector<T> transposed(const T *codebook, int64_t codes, int64_t dim, T factor) {
  const int64_t wide = padded<T>(codes);
  std::vector<T> found(dim * wide);
  for (int64_t s = 0; s < codes; ++s)
    for (int64_t d = 0; d < dim; ++d) found[d * wide + s] = codebook[s * dim + d] * factor;
  return found;
}

// For up to kSlice rows, the code with the largest x · c - |c|²/2; the first one on ties.
template <typename T>
void nearest(const T *x, int64_t rows, int64_t dim, const std::vector<T> &book, const std::vector<T> &bias,
             int64_t *codes) {
  using Bits = typename Vector<T>::bits;
  using Integer = typename Number<T>::Integer;
  constexpr int lanes = Vector<T>::lanes;
  const int64_t wide = bias.size();
  Vec<T> best[kSlice];
  Bits index[kSlice];
  Bits lane;
  for (int i = 0; i < lanes; ++i) lane[i] = i;
  for (int64_t r = 0; r < rows; ++r) best[r] = Vec<T>{} - std::numeric_limits<T>::infinity(), index[r] = lane;
  product(x, dim, rows, book.data(), wide, wide, dim, bias.data(), [&](int64_t row, int64_t column, auto &sum) {
    for (size_t r = 0; r < std::extent_v<std::remove_reference_t<decltype(sum)>, 0>; ++r)
      for (size_t w = 0; w < std::extent_v<std::remove_reference_t<decltype(sum)>, 1>; ++w) {
        const auto better = sum[r][w] > best[row + r];
        best[row + r] = better ? sum[r][w] : best[row + r];
        index[row + r] = better ? lane + static_cast<Integer>(column + w * lanes) : index[row + r];
      }
  });
  for (int64_t r = 0; r < rows; ++r) {
    int at = 0;
    for (int i = 1; i < lanes; ++i)
      if (best[r][i] > best[r][at] || (best[r][i] == best[r][at] && index[r][i] < index[r][at])) at = i;
    codes[r] = index[r][at];
  }
}

// X rows of G codebooks: x (X, N, D), codebook (G, S, D), codes (X, N).
template <typename T>
void nearest_codes(const T *x, const T *codebook, const int64_t *sizes, int64_t *codes) {
  const int64_t X = sizes[0], G = sizes[1], N = sizes[2], D = sizes[3], S = sizes[4], threads = sizes[5];
  std::vector<std::vector<T>> books, biases;
  for (int64_t g = 0; g < G; ++g) {
    const T *book = codebook + g * S * D;
    books.push_back(transposed(book, S, D, T{1}));
    biases.emplace_back(padded<T>(S), -std::numeric_limits<T>::infinity());
    for (int64_t s = 0; s < S; ++s) {
      T square = 0;
      for (int64_t d = 0; d < D; ++d) square += book[s * D + d] * book[s * D + d];
      biases[g][s] = -square / 2;
    }
  }
  const int64_t slices = (N + kSlice - 1) / kSlice;
  parallel(threads, X * slices, [&](int64_t item) {
    const int64_t row = item / slices, begin = item % slices * kSlice, at = row * N + begin;
    nearest(x + at * D, std::min(kSlice, N - begin), D, books[row % G], biases[row % G], codes + at);
  });
}

// X key heads of R query heads each. Scores of queries and codes are products of q (X, R, N, D) and the codebook (G, S,
// D) or, if q is null, the rows of `table` (G, R, A, S) selected by `q_codes` (X, R, N). A causal call has N keys.
template <typename T>
struct Problem {
  const T *q, *codebook, *table, *v;
  const int64_t *q_codes, *k_codes;
  int64_t X, R, G, N, D, E, S, A, threads;
  T scale;
  std::vector<std::vector<T>> books;

  int64_t wide() const { return padded<T>(S); }
  int64_t value() const { return padded<T>(E); }
  int64_t chunks() const { return (N + kChunk - 1) / kChunk; }
};

// Scratch memory of a thread for a block: the state at its start, scores and then weights, and outputs.
template <typename T>
struct Scratch {
  std::vector<T> counts, sums, weights, out, open;
  explicit Scratch(const Problem<T> &p)
      : counts(p.wide()), sums(p.wide() * p.value()), weights(kBlock * p.wide()), out(kBlock * p.value()),
        open(p.wide()) {}

  void start(const Problem<T> &p, const double *from_counts, const double *from_sums) {
    for (int64_t s = 0; s < p.wide(); ++s) {
      counts[s] = s < p.S ? static_cast<T>(from_counts[s]) : T{0};
      for (int64_t e = 0; e < p.value(); ++e)
        sums[s * p.value() + e] = s < p.S && e < p.E ? static_cast<T>(from_sums[s * p.E + e]) : T{0};
    }
  }
};

// Scores of `rows` queries of head (x, r) from position `begin` with every code.
template <typename T>
void scores(const Problem<T> &p, int64_t x, int64_t r, int64_t begin, int64_t rows, Scratch<T> &s) {
  const int64_t at = (x * p.R + r) * p.N + begin, wide = p.wide();
  if (p.q) {
    product(p.q + at * p.D, p.D, rows, p.books[x % p.G].data(), wide, wide, p.D, static_cast<const T *>(nullptr),
            [&](int64_t row, int64_t column, auto &sum) { put<T>(sum, &s.weights[row * wide + column], wide); });
    return;
  }
  const T *table = p.table + (x % p.G * p.R + r) * p.A * p.S;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t code = p.q_codes[at + i];
    require(0 <= code && code < p.A, "a query's code is not from 0 to codes - 1");
    std::memcpy(&s.weights[i * wide], table + code * p.S, p.S * sizeof(T));
  }
}

// Turns scores into weights in place. The largest score that query i sees, among earlier keys and the block's keys up
// to its own, gets weight 1. Codes that only later keys have may score higher; they are clamped to 1, and nothing
// counts them.
template <typename T>
T weigh(T *row, const Scratch<T> &s, int64_t wide, const int64_t *own, int64_t seen) {
  constexpr int lanes = Vector<T>::lanes;
  Vec<T> most = Vec<T>{} - std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < wide; i += lanes) {
    const Vec<T> x = load(row + i) + load(&s.open[i]);
    most = x > most ? x : most;
  }
  T top = most[0];
  for (int i = 1; i < lanes; ++i) top = std::max<T>(top, most[i]);
  for (int64_t j = 0; j < seen; ++j) top = std::max(top, row[own[j]]);
  Vec<T> total{};
  for (int64_t i = 0; i < wide; i += lanes) {
    Vec<T> x = load(row + i) - top;
    x = weight<T>(x < Vec<T>{} ? x : Vec<T>{});
    total += x * load(&s.counts[i]);
    store(row + i, x);
  }
  T sum = 0;
  for (int i = 0; i < lanes; ++i) sum += total[i];
  for (int64_t j = 0; j < seen; ++j) sum += row[own[j]];
  return sum;
}

// Outputs of `rows` queries from position `begin`; if `causal`, the block's own keys count up to each query.
template <typename T>
void block(const Problem<T> &p, int64_t x, int64_t r, int64_t begin, int64_t rows, bool causal, Scratch<T> &s, T *out) {
  const int64_t wide = p.wide(), value = p.value(), at = (x * p.R + r) * p.N + begin;
  const int64_t *own = causal ? p.k_codes + x * p.N + begin : nullptr;
  T normaliser[kBlock];
  scores(p, x, r, begin, rows, s);
  for (int64_t i = 0; i < rows; ++i) normaliser[i] = weigh(&s.weights[i * wide], s, wide, own, causal ? i + 1 : 0);
  product(s.weights.data(), wide, rows, s.sums.data(), value, value, p.S, static_cast<const T *>(nullptr),
          [&](int64_t row, int64_t column, auto &sum) { put<T>(sum, &s.out[row * value + column], value); });
  for (int64_t i = 0; i < rows; ++i) {
    T *__restrict__ to = &s.out[i * value];
    for (int64_t j = 0; causal && j <= i; ++j) {
      const T weight = s.weights[i * wide + own[j]];
      const T *__restrict__ v = p.v + (x * p.N + begin + j) * p.E;
      for (int64_t e = 0; e < p.E; ++e) to[e] += weight * v[e];
    }
    T nothing = 0;  // NaN if the query holds NaN or infinity, which comparisons hide
    for (int64_t d = 0; p.q && d < p.D; ++d) nothing += p.q[(at + i) * p.D + d] * 0;
    const T share = 1 / normaliser[i] + nothing;
    for (int64_t e = 0; e < p.E; ++e) out[(at + i) * p.E + e] = to[e] * share;
  }
}

// Marks codes that have a key so far with 0, others with minus infinity.
template <typename T>
void open_codes(const Problem<T> &p, Scratch<T> &s) {
  for (int64_t c = 0; c < p.wide(); ++c) s.open[c] = s.counts[c] > 0 ? T{0} : -std::numeric_limits<T>::infinity();
}

// One chunk of positions of key head x, from the state at its start.
template <typename T>
void causal_chunk(const Problem<T> &p, int64_t x, int64_t begin, int64_t end, Scratch<T> &s, T *out) {
  open_codes(p, s);
  for (; begin < end; begin += kBlock) {
    const int64_t rows = std::min(kBlock, end - begin);
    for (int64_t r = 0; r < p.R; ++r) block(p, x, r, begin, rows, true, s, out);
    for (int64_t j = x * p.N + begin; j < x * p.N + begin + rows; ++j) {
      const int64_t code = p.k_codes[j];
      s.counts[code] += 1, s.open[code] = 0;
      T *__restrict__ sum = &s.sums[code * p.value()];
      for (int64_t e = 0; e < p.E; ++e) sum[e] += p.v[j * p.E + e];
    }
  }
}

// Adds `rows` keys of v (X, M, E), from key `first` on, to counts (S) and sums (S, E).
template <typename T>
void tally_chunk(const T *v, const int64_t *codes, int64_t first, int64_t rows, int64_t S, int64_t E, double *counts,
                 double *sums) {
  for (int64_t j = first; j < first + rows; ++j) {
    require(0 <= codes[j] && codes[j] < S, "a key's code is not from 0 to codes - 1");
    counts[codes[j]] += 1;
    double *__restrict__ sum = sums + codes[j] * E;
    for (int64_t e = 0; e < E; ++e) sum[e] += v[j * E + e];
  }
}

// Counts and sums of each chunk of keys, (X, chunks, S) and (X, chunks, S, E), replaced by the running total before the
// chunk. The total starts at `counts` (X, S) and `sums` (X, S, E), which receive the final total.
template <typename T>
struct Tally {
  std::vector<double> counts, sums;
  int64_t chunks;

  Tally(const T *v, const int64_t *codes, int64_t X, int64_t M, int64_t S, int64_t E, int64_t chunk, int64_t threads,
        double *all_counts, double *all_sums)
      : counts(X * ((M + chunk - 1) / chunk) * S), sums(counts.size() * E), chunks((M + chunk - 1) / chunk) {
    parallel(threads, X * chunks, [&](int64_t item) {
      const int64_t begin = item % chunks * chunk;
      tally_chunk(v, codes, item / chunks * M + begin, std::min(chunk, M - begin), S, E, counts.data() + item * S,
                  sums.data() + item * S * E);
    });
    parallel(threads, X, [&](int64_t x) {
      run(counts.data() + x * chunks * S, all_counts + x * S, S);
      run(sums.data() + x * chunks * S * E, all_sums + x * S * E, S * E);
    });
  }

  void run(double *__restrict__ of_chunks, double *__restrict__ total, int64_t size) const {
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t i = 0; i < size; ++i) {
        const double own = of_chunks[c * size + i];
        of_chunks[c * size + i] = total[i];
        total[i] += own;
      }
  }
};

template <typename T>
void tally(const T *v, const int64_t *codes, const int64_t *sizes, double *counts, double *sums) {
  const int64_t X = sizes[0], M = sizes[1], E = sizes[2], S = sizes[3], threads = sizes[4];
  const int64_t share = (M * X + threads - 1) / threads;  // no more chunks than threads
  Tally<T>(v, codes, X, M, S, E, std::max(kChunk, share), threads, counts, sums);
}

template <typename T>
void attend(Problem<T> &p, bool causal, double *counts, double *sums, T *out) {
  for (int64_t g = 0; p.q && g < p.G; ++g)
    p.books.push_back(transposed(p.codebook + g * p.S * p.D, p.S, p.D, p.scale));
  const auto scratch = [&] { return Scratch<T>(p); };
  if (causal) {
    const Tally<T> starts(p.v, p.k_codes, p.X, p.N, p.S, p.E, kChunk, p.threads, counts, sums);
    parallel(p.threads, p.X * p.chunks(), scratch, [&](int64_t item, Scratch<T> &s) {
      const int64_t x = item / p.chunks(), begin = item % p.chunks() * kChunk;
      s.start(p, &starts.counts[item * p.S], &starts.sums[item * p.S * p.E]);
      causal_chunk(p, x, begin, std::min(begin + kChunk, p.N), s, out);
    });
    return;
  }
  const int64_t items = p.X * p.R * p.chunks();
  parallel(p.threads, items, scratch, [&](int64_t item, Scratch<T> &s) {
    const int64_t x = item / p.chunks() / p.R, r = item / p.chunks() % p.R, begin = item % p.chunks() * kChunk;
    s.start(p, counts + x * p.S, sums + x * p.S * p.E);
    open_codes(p, s);
    for (int64_t at = begin; at < std::min(begin + kChunk, p.N); at += kBlock)
      block(p, x, r, at, std::min(kBlock, std::min(begin + kChunk, p.N) - at), false, s, out);
  });
}

template <typename T>
void attend(const T *q, const int64_t *q_codes, const T *table, const T *codebook, const int64_t *k_codes, const T *v,
            const int64_t *sizes, double scale, double *counts, double *sums, T *out) {
  Problem<T> p{q,        codebook, table,    v,        q_codes,  k_codes,  sizes[0],        sizes[1], sizes[2],
               sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8], static_cast<T>(scale), {}};
  attend(p, sizes[9] != 0, counts, sums, out);
}

// out[x, i] = table[x, codes[x, i]] for table (X, A, E) and codes (X, N).
template <typename T>
void look_up(const T *table, const int64_t *codes, const int64_t *sizes, T *out) {
  const int64_t X = sizes[0], A = sizes[1], N = sizes[2], E = sizes[3], threads = sizes[4];
  const int64_t slices = (N + kChunk - 1) / kChunk;
  parallel(threads, X * slices, [&](int64_t item) {
    const int64_t x = item / slices, begin = item % slices * kChunk;
    for (int64_t i = x * N + begin; i < x * N + std::min(begin + kChunk, N); ++i) {
      require(0 <= codes[i] && codes[i] < A, "a code is not from 0 to codes - 1");
      std::memcpy(out + i * E, table + (x * A + codes[i]) * E, E * sizeof(T));
    }
  });
}

}  // namespace

#define DEFINE(T, NAME)                                                                                               \
  extern "C" const char *vq_nearest_##NAME(const T *x, const T *codebook, const int64_t *sizes, int64_t *codes) {     \
    return guarded([&] { nearest_codes(x, codebook, sizes, codes); });                                                \
  }                                                                                                                   \
  extern "C" const char *vq_tally_##NAME(const T *v, const int64_t *codes, const int64_t *sizes, double *counts,      \
                                  double *sums) {                                                                     \
    return guarded([&] { tally(v, codes, sizes, counts, sums); });                                                    \
  }                                                                                                                   \
  extern "C" const char *vq_attend_##NAME(const T *q, const int64_t *q_codes, const T *table, const T *codebook,      \
                                   const int64_t *k_codes, const T *v, const int64_t *sizes, double scale,            \
                                   double *counts, double *sums, T *out) {                                            \
    return guarded([&] { attend(q, q_codes, table, codebook, k_codes, v, sizes, scale, counts, sums, out); });        \
  }                                                                                                                   \
  extern "C" const char *vq_look_up_##NAME(const T *table, const int64_t *codes, const int64_t *sizes, T *out) {      \
    return guarded([&] { look_up(table, codes, sizes, out); });                                                       \
  }

DEFINE(float, float32)
DEFINE(double, float64)
