// Softmax attention over bucket windows, forward and backward, for CPUs. Uses only the C++ standard library.
//
// The computation is described in attentions/common/windows.py and window_tiles.py; results are equal up to rounding.
// Sorted queries are processed in blocks of 32. Scores are stored transposed, one key per row and one query per lane,
// so masks, maxima, exponentials and sums run over lanes without shuffles, and key and value rows are read in place,
// never gathered. A group of four queries multiplies only the values inside its own windows.
//
// Register blocking: 24 accumulators of 64 bytes with AVX-512, 12 of 32 bytes otherwise.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "vectors.hpp"

namespace {

#ifdef __AVX512F__
constexpr int kAccumulators = 24;
#else
constexpr int kAccumulators = 12;
#endif
constexpr int kBlock = 32;   // sorted queries per block, and lanes per row of scores
constexpr int kTile = 192;   // keys per tile: holds a window of 128 and a block, and the scores fit in the L1 cache
constexpr int kGroup = 4;    // queries that share one pass over the values
constexpr int kChunk = 64;   // blocks per unit of work of a thread

// Mirrors `Windows` and its `Members` in attentions/common/windows.py; `before`, `skip` and the members may be null.
struct Table {
  const int32_t *key_order, *query_order, *start, *end, *before, *skip;
  const int32_t *key_code, *query_code, *shift, *oldest, *newest;
  int64_t places;  // length of a row of key_order
  bool by_rank;

  // Index of a key's vectors and code in their row, given its rank and the entry of key_order.
  int32_t at(int32_t rank, int32_t key) const { return by_rank ? rank : key; }
};
constexpr int kPointers = 11;

template <typename T>
struct Problem {
  const T *q, *k, *v;
  int64_t rows, queries, keys, dim, value_dim;
  std::vector<Table> tables;
  T scale;
  bool once;
  int threads;
  bool resume;  // forward continues from the given output and log-sum-exp

  int64_t blocks() const { return (queries + kBlock - 1) / kBlock; }
};

// exp for x <= 0 (approximately): 2^n · p(r) with Cephes' polynomial, relative error 2e-7; zero below the smallest
// normal.
inline float exponential(float x) {
  const float kept = std::max(x, -87.0f);
  const float n = std::nearbyint(kept * 1.44269504f);
  const float r = (kept - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return x < -87.0f ? 0.0f : p * power;
}
inline double exponential(double x) { return std::exp(x); }

// One block of sorted queries: their indices, their windows, and the key ranks that the windows cover.
struct Block {
  struct Earlier {  // lanes of a table that counts before this one
    const int32_t *key_code;
    alignas(64) int32_t code[kBlock], shift[kBlock], oldest[kBlock], newest[kBlock];
  };
  int count = 0;
  int64_t row = 0;
  int32_t query[kBlock];
  bool bounded = false, skips = false;
  std::vector<int32_t> ranks;  // the key ranks in any of the windows; gaps between windows are skipped
  alignas(64) int32_t start[kBlock], end[kBlock], before[kBlock], skip[kBlock];  // windows as places in `ranks`
  std::vector<Earlier> earlier;

  template <typename T>
  void load(const Problem<T> &p, size_t table, int64_t item) {
    row = item / p.blocks();
    const int64_t first = item % p.blocks() * kBlock;
    count = static_cast<int>(std::min<int64_t>(kBlock, p.queries - first));
    const Table &t = p.tables[table];
    bounded = t.before != nullptr, skips = t.skip != nullptr;
    ranks.clear();
    for (int i = 0; i < kBlock; ++i) {
      query[i] = t.query_order[row * p.queries + first + std::min(i, count - 1)];
      require(0 <= query[i] && query[i] < p.queries, "query_order holds a query that does not exist");
      const int64_t at = row * p.queries + query[i];
      const int32_t size = i < count ? t.end[at] - t.start[at] : 0;  // lanes past the end have no keys
      require(size <= 0 || (0 <= t.start[at] && t.end[at] <= t.places), "a window extends beyond the sorted keys");
      // Both ends are monotone, so a non-empty window ends where the union so far ends.
      if (size > 0) append(ranks, t.start[at], t.end[at]);
      end[i] = static_cast<int32_t>(ranks.size()), start[i] = end[i] - size;
      before[i] = bounded ? t.before[at] : 0;
      skip[i] = skips ? t.skip[at] : -1;
    }
    earlier.resize(p.once ? table : 0);
    for (size_t e = 0; e < earlier.size(); ++e) {
      const Table &other = p.tables[e];
      earlier[e].key_code = other.key_code + row * p.keys;
      for (int i = 0; i < kBlock; ++i) {
        const int64_t at = row * p.queries + query[i];
        earlier[e].code[i] = other.query_code[at], earlier[e].shift[i] = other.shift[at];
        earlier[e].oldest[i] = other.oldest[at], earlier[e].newest[i] = other.newest[at];
      }
    }
  }

  // The entry of a table's key_order for this row at a place of `ranks`: a key, or its position if it is by rank.
  template <typename T>
  int32_t key(const Problem<T> &p, size_t table, int32_t place) const {
    const Table &t = p.tables[table];
    const int32_t found = t.key_order[row * t.places + ranks[place]];
    require(t.by_rank || (0 <= found && found < p.keys), "key_order holds a key that does not exist");
    return found;
  }

  // Sets keep to 1 for the lanes for which the key at this place of `ranks`, with its code at `at`, counts, else to 0.
  void mask(int32_t place, int32_t key, int32_t at, int32_t *__restrict__ keep) const {
    for (int i = 0; i < kBlock; ++i) keep[i] = (start[i] <= place) & (place < end[i]);
    if (bounded)
      for (int i = 0; i < kBlock; ++i) keep[i] &= key < before[i];
    if (skips)
      for (int i = 0; i < kBlock; ++i) keep[i] &= key != skip[i];
    for (const Earlier &e : earlier) {
      const int32_t code = e.key_code[at];
      for (int i = 0; i < kBlock; ++i)
        keep[i] &= (((e.code[i] ^ code) >> e.shift[i]) != 0) | (key < e.oldest[i]) | (e.newest[i] < key);
    }
  }

  // The part of a tile of `size` places from `begin` that the windows of a group of queries cover, relative to `begin`.
  std::pair<int, int> touched(int group, int32_t begin, int size) const {
    int32_t from = std::numeric_limits<int32_t>::max(), to = 0;
    for (int i = group; i < group + kGroup; ++i)
      if (start[i] < end[i]) from = std::min(from, start[i]), to = std::max(to, end[i]);
    from = std::max(from, begin), to = std::min(to, begin + size);
    return from < to ? std::pair<int, int>{from - begin, to - begin} : std::pair<int, int>{0, 0};
  }

  // Appends [start, end) to ascending ranks, skipping those already there.
  static void append(std::vector<int32_t> &to, int32_t start, int32_t end) {
    for (int32_t r = to.empty() ? start : std::max(start, to.back() + 1); r < end; ++r) to.push_back(r);
  }
};

// scores[j][lane] = sum over d of rows[j][d] · packed[d][lane], for Rows keys at once.
template <typename T, int Rows>
void score_rows(const T *const *rows, const T *packed, int64_t dim, T *scores) {
  using V = typename Vector<T>::type;
  constexpr int parts = kBlock / Vector<T>::lanes;
  V sum[Rows][parts] = {};
  for (int64_t d = 0; d < dim; ++d) {
    const V *lane = reinterpret_cast<const V *>(packed + d * kBlock);
    V x[parts];
    for (int s = 0; s < parts; ++s) x[s] = lane[s];
    for (int r = 0; r < Rows; ++r)
      for (int s = 0; s < parts; ++s) sum[r][s] += rows[r][d] * x[s];
  }
  for (int r = 0; r < Rows; ++r)
    for (int s = 0; s < parts; ++s) reinterpret_cast<V *>(scores + r * kBlock)[s] = sum[r][s];
}

// Scores of `count` keys. `rows` and `scores` have room for a few more, which repeat the last key.
template <typename T>
void score(const T **rows, int count, const T *packed, int64_t dim, T *scores) {
  constexpr int step = kAccumulators / (kBlock / Vector<T>::lanes);
  for (int j = count; j < count + step; ++j) rows[j] = rows[count - 1];
  for (int j = 0; j < count; j += step) score_rows<T, step>(rows + j, packed, dim, scores + j * kBlock);
}

// out[g][:] += sum over j of weight(g, j) · rows[j][:] for kGroup outputs and Parts vectors of their width.
template <typename T, int Parts>
void add_part(T *const *out, const T *weight, int64_t group_step, int64_t row_step, const T *const *rows, int from,
              int to, int64_t offset) {
  using V = typename Vector<T>::type;
  V sum[kGroup][Parts];
  for (int g = 0; g < kGroup; ++g)
    for (int s = 0; s < Parts; ++s) sum[g][s] = reinterpret_cast<const V *>(out[g] + offset)[s];
  for (int j = from; j < to; ++j) {
    const V *row = reinterpret_cast<const V *>(rows[j] + offset);
    V x[Parts];
    for (int s = 0; s < Parts; ++s) x[s] = row[s];
    for (int g = 0; g < kGroup; ++g)
      for (int s = 0; s < Parts; ++s) sum[g][s] += weight[g * group_step + j * row_step] * x[s];
  }
  for (int g = 0; g < kGroup; ++g)
    for (int s = 0; s < Parts; ++s) reinterpret_cast<V *>(out[g] + offset)[s] = sum[g][s];
}

template <typename T>
void add(T *const *out, const T *weight, int64_t group_step, int64_t row_step, const T *const *rows, int from, int to,
         int64_t width) {
  constexpr int lanes = Vector<T>::lanes;
  constexpr int parts = kAccumulators / (kGroup + 2);
  int64_t offset = 0;
  for (; offset + parts * lanes <= width; offset += parts * lanes)
    add_part<T, parts>(out, weight, group_step, row_step, rows, from, to, offset);
  for (; offset + lanes <= width; offset += lanes)
    add_part<T, 1>(out, weight, group_step, row_step, rows, from, to, offset);
}

int64_t padded(int64_t width, int64_t lanes) { return (width + lanes - 1) / lanes * lanes; }

// Rows of a matrix by index: pointers into it, or into a padded copy if its width is not a whole number of vectors.
template <typename T>
struct Rows {
  int64_t width, wide;
  std::vector<T> copy;
  std::vector<const T *> at;

  Rows(int64_t width_, int capacity)
      : width(width_), wide(padded(width_, Vector<T>::lanes)), at(capacity + kAccumulators) {
    if (wide != width) copy.assign(capacity * wide, T(0));
  }
  void set(int j, const T *row) {
    if (copy.empty()) {
      at[j] = row;
    } else {
      std::copy(row, row + width, &copy[j * wide]);
      at[j] = &copy[j * wide];
    }
  }
};

// Rows of the block's queries, transposed and scaled: packed[d][lane].
template <typename T>
void pack(const Block &b, const T *base, int64_t queries, int64_t dim, T scale, T *packed) {
  for (int i = 0; i < kBlock; ++i) {
    const T *row = base + (b.row * queries + b.query[i]) * dim;
    for (int64_t d = 0; d < dim; ++d) packed[d * kBlock + i] = row[d] * scale;
  }
}

template <typename T>
struct Forward {
  Block block;
  Rows<T> keys, values;
  std::vector<T> packed, scores, sum;
  T *out[kBlock];
  int32_t which[kTile], at_row[kTile];

  explicit Forward(const Problem<T> &p)
      : keys(p.dim, kTile), values(p.value_dim, kTile), packed(p.dim * kBlock),
        scores((kTile + kAccumulators) * kBlock), sum(kBlock * values.wide) {
    for (int i = 0; i < kBlock; ++i) out[i] = &sum[i * values.wide];
  }

  void run(const Problem<T> &p, size_t table, int64_t item, T *result, T *top, T *total) {
    block.load(p, table, item);
    if (block.ranks.empty()) return;
    alignas(64) T most[kBlock], weight[kBlock];
    alignas(64) int32_t keep[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = block.row * p.queries + block.query[i];
      most[i] = top[at], weight[i] = total[at];
      std::copy(result + at * p.value_dim, result + (at + 1) * p.value_dim, out[i]);
    }
    pack(block, p.q, p.queries, p.dim, p.scale, packed.data());
    const int32_t places = static_cast<int32_t>(block.ranks.size());
    for (int32_t begin = 0; begin < places; begin += kTile) {
      const int count = std::min<int32_t>(kTile, places - begin);
      for (int j = 0; j < count; ++j) {
        which[j] = block.key(p, table, begin + j), at_row[j] = p.tables[table].at(block.ranks[begin + j], which[j]);
        keys.set(j, p.k + (block.row * p.keys + at_row[j]) * p.dim);
        values.set(j, p.v + (block.row * p.keys + at_row[j]) * p.value_dim);
      }
      score(keys.at.data(), count, packed.data(), p.dim, scores.data());
      alignas(64) T higher[kBlock];
      std::copy(most, most + kBlock, higher);
      for (int j = 0; j < count; ++j) {
        T *__restrict__ s = &scores[j * kBlock];
        block.mask(begin + j, which[j], at_row[j], keep);
        for (int i = 0; i < kBlock; ++i) {
          s[i] = keep[i] ? s[i] : -std::numeric_limits<T>::infinity();
          higher[i] = std::max(higher[i], s[i]);
        }
      }
      for (int i = 0; i < kBlock; ++i) {
        const T anchor = std::max(higher[i], std::numeric_limits<T>::lowest());
        const T shrink = exponential(most[i] - anchor);
        weight[i] *= shrink;
        if (shrink != T(1))
          for (int64_t e = 0; e < p.value_dim; ++e) out[i][e] *= shrink;
        most[i] = higher[i], higher[i] = anchor;
      }
      for (int j = 0; j < count; ++j) {
        T *__restrict__ s = &scores[j * kBlock];
        for (int i = 0; i < kBlock; ++i) s[i] = exponential(s[i] - higher[i]);
        for (int i = 0; i < kBlock; ++i) weight[i] += s[i];
      }
      for (int g = 0; g < kBlock; g += kGroup) {
        const auto [from, to] = block.touched(g, begin, count);
        if (from < to) add(out + g, &scores[g], 1, kBlock, values.at.data(), from, to, values.wide);
      }
    }
    for (int i = 0; i < block.count; ++i) {
      const int64_t at = block.row * p.queries + block.query[i];
      top[at] = most[i], total[at] = weight[i];
      std::copy(out[i], out[i] + p.value_dim, result + at * p.value_dim);
    }
  }
};

template <typename T>
void forward(const Problem<T> &p, T *out, T *lse) {
  const int64_t n = p.rows * p.queries;
  std::vector<T> top(n, -std::numeric_limits<T>::infinity()), total(n, T(0));
  if (p.resume)  // a finished softmax has weight one at its log-sum-exp
    for (int64_t at = 0; at < n; ++at) top[at] = lse[at], total[at] = std::isinf(lse[at]) ? T(0) : T(1);
  else
    std::fill(out, out + n * p.value_dim, T(0));
  for (size_t t = 0; t < p.tables.size(); ++t)
    parallel(p.threads, p.rows * p.blocks(), kChunk, [&] { return Forward<T>(p); },
             [&](int64_t item, Forward<T> &f) { f.run(p, t, item, out, top.data(), total.data()); });
  parallel(p.threads, n, 4096, [] { return 0; }, [&](int64_t at, int) {
    const T by = total[at] > 0 ? 1 / total[at] : T(0);
    for (int64_t e = 0; e < p.value_dim; ++e) out[at * p.value_dim + e] *= by;
    lse[at] = top[at] + std::log(total[at]);
  });
}

// A run of blocks of one row and table, with the gradients of the key ranks in their windows.
template <typename T>
struct Run {
  std::vector<int32_t> ranks;
  std::vector<T> dk, dv;
};

template <typename T>
struct Backward {
  Block block;
  Rows<T> keys, values, queries, grads;
  std::vector<T> packed_q, packed_g, scores, flow, dq, spare;
  T *dq_at[kBlock];
  int32_t which[kTile], at_row[kTile];
  alignas(64) T log_sum[kBlock], inner[kBlock];

  explicit Backward(const Problem<T> &p)
      : keys(p.dim, kTile), values(p.value_dim, kTile), queries(p.dim, kBlock), grads(p.value_dim, kBlock),
        packed_q(p.dim * kBlock), packed_g(p.value_dim * kBlock), scores((kTile + kAccumulators) * kBlock),
        flow((kTile + kAccumulators) * kBlock), dq(kBlock * keys.wide),
        spare(kGroup * std::max(keys.wide, values.wide)) {
    for (int i = 0; i < kBlock; ++i) dq_at[i] = &dq[i * keys.wide];
  }

  void run(const Problem<T> &p, size_t table, int64_t item, const T *grad, const T *lse, const T *delta, T *dq_out,
           Run<T> &into) {
    block.load(p, table, item);
    if (block.ranks.empty()) return;
    alignas(64) int32_t keep[kBlock];
    // The block's ranks are a subset of the run's; both ascend.
    auto place = std::lower_bound(into.ranks.begin(), into.ranks.end(), block.ranks[0]) - into.ranks.begin();
    for (int i = 0; i < kBlock; ++i) {
      const int64_t at = block.row * p.queries + block.query[i];
      const bool any = lse[at] > -std::numeric_limits<T>::infinity();
      log_sum[i] = any ? lse[at] : T(0), inner[i] = delta[at];
      queries.set(i, p.q + at * p.dim), grads.set(i, grad + at * p.value_dim);
    }
    std::fill(dq.begin(), dq.end(), T(0));
    pack(block, p.q, p.queries, p.dim, p.scale, packed_q.data());
    pack(block, grad, p.queries, p.value_dim, T(1), packed_g.data());
    const int32_t places = static_cast<int32_t>(block.ranks.size());
    for (int32_t begin = 0; begin < places; begin += kTile) {
      const int count = std::min<int32_t>(kTile, places - begin);
      for (int j = 0; j < count; ++j) {
        which[j] = block.key(p, table, begin + j), at_row[j] = p.tables[table].at(block.ranks[begin + j], which[j]);
        keys.set(j, p.k + (block.row * p.keys + at_row[j]) * p.dim);
        values.set(j, p.v + (block.row * p.keys + at_row[j]) * p.value_dim);
      }
      score(keys.at.data(), count, packed_q.data(), p.dim, scores.data());
      score(values.at.data(), count, packed_g.data(), p.value_dim, flow.data());
      for (int j = 0; j < count; ++j) {
        T *__restrict__ s = &scores[j * kBlock], *__restrict__ f = &flow[j * kBlock];
        block.mask(begin + j, which[j], at_row[j], keep);
        for (int i = 0; i < kBlock; ++i) {
          s[i] = keep[i] ? exponential(s[i] - log_sum[i]) : T(0);
          f[i] = keep[i] ? s[i] * (f[i] - inner[i]) * p.scale : T(0);
        }
      }
      for (int g = 0; g < kBlock; g += kGroup) {
        const auto [from, to] = block.touched(g, begin, count);
        if (from < to) add(dq_at + g, &flow[g], 1, kBlock, keys.at.data(), from, to, keys.wide);
      }
      for (int j = 0; j < count; j += kGroup) {
        int64_t to[kGroup];
        const int left = std::min(kGroup, count - j);
        for (int g = 0; g < left; ++g) {
          const auto last = into.ranks.end();
          place = std::find(into.ranks.begin() + place, last, block.ranks[begin + j + g]) - into.ranks.begin();
          require(into.ranks.begin() + place != last, "windows do not ascend with query_order");
          to[g] = place;
        }
        spread(into.dk.data(), to, left, &flow[j * kBlock], queries);
        spread(into.dv.data(), to, left, &scores[j * kBlock], grads);
      }
    }
    for (int i = 0; i < block.count; ++i) {
      T *to = dq_out + (block.row * p.queries + block.query[i]) * p.dim;
      for (int64_t d = 0; d < p.dim; ++d) to[d] += dq_at[i][d];
    }
  }

  // Gradients of up to kGroup keys: the block's rows weighted by one row of scores each.
  void spread(T *into, const int64_t *to, int left, const T *weight, const Rows<T> &rows) {
    T *out[kGroup];
    for (int g = 0; g < kGroup; ++g) out[g] = g < left ? into + to[g] * rows.wide : &spare[g * rows.wide];
    add(out, weight, kBlock, 1, rows.at.data(), 0, kBlock, rows.wide);
  }
};

template <typename T>
void backward_of_row(const Problem<T> &p, size_t table, int64_t row, const T *grad, const T *lse, const T *delta, T *dq,
                     T *dk, T *dv) {
  const int64_t runs = (p.blocks() + kChunk - 1) / kChunk;
  const int64_t wide_k = padded(p.dim, Vector<T>::lanes), wide_v = padded(p.value_dim, Vector<T>::lanes);
  std::vector<Run<T>> done(runs);
  parallel(p.threads, runs, 1, [&] { return Backward<T>(p); }, [&](int64_t r, Backward<T> &b) {
    const int64_t first = row * p.blocks() + r * kChunk;
    const int64_t last = std::min(row * p.blocks() + p.blocks(), first + kChunk);
    Run<T> &run = done[r];
    for (int64_t item = first; item < last; ++item) {
      b.block.load(p, table, item);
      for (int32_t rank : b.block.ranks)
        if (run.ranks.empty() || rank > run.ranks.back()) run.ranks.push_back(rank);
    }
    run.dk.assign(run.ranks.size() * wide_k, T(0));
    run.dv.assign(run.ranks.size() * wide_v, T(0));
    for (int64_t item = first; item < last; ++item) b.run(p, table, item, grad, lse, delta, dq, run);
  });
  // In order, so that the sums do not depend on which thread finishes first.
  const int32_t *order = p.tables[table].key_order + row * p.tables[table].places;
  for (const Run<T> &run : done)
    for (size_t i = 0; i < run.ranks.size(); ++i) {
      const int64_t key = row * p.keys + p.tables[table].at(run.ranks[i], order[run.ranks[i]]);
      const T *from_k = &run.dk[i * wide_k], *from_v = &run.dv[i * wide_v];
      for (int64_t d = 0; d < p.dim; ++d) dk[key * p.dim + d] += from_k[d];
      for (int64_t e = 0; e < p.value_dim; ++e) dv[key * p.value_dim + e] += from_v[e];
    }
}

template <typename T>
void backward(const Problem<T> &p, const T *grad, const T *out, const T *lse, T *dq, T *dk, T *dv) {
  std::vector<T> delta(p.rows * p.queries, T(0));
  parallel(p.threads, p.rows * p.queries, 4096, [] { return 0; }, [&](int64_t at, int) {
    for (int64_t e = 0; e < p.value_dim; ++e) delta[at] += grad[at * p.value_dim + e] * out[at * p.value_dim + e];
  });
  for (size_t t = 0; t < p.tables.size(); ++t)
    for (int64_t row = 0; row < p.rows; ++row)
      backward_of_row(p, t, row, grad, lse, delta.data(), dq, dk, dv);
}

// Number of keys that count for each query, over all tables.
template <typename T>
void count(const Problem<T> &p, int64_t *found) {
  std::fill(found, found + p.rows * p.queries, 0);
  for (size_t t = 0; t < p.tables.size(); ++t)
    parallel(p.threads, p.rows * p.blocks(), kChunk, [] { return Block(); }, [&](int64_t item, Block &b) {
      b.load(p, t, item);
      alignas(64) int32_t keep[kBlock], sum[kBlock] = {};
      for (size_t place = 0; place < b.ranks.size(); ++place) {
        const int32_t key = b.key(p, t, static_cast<int32_t>(place));
        b.mask(static_cast<int32_t>(place), key, p.tables[t].at(b.ranks[place], key), keep);
        for (int i = 0; i < kBlock; ++i) sum[i] += keep[i];
      }
      for (int i = 0; i < b.count; ++i) found[b.row * p.queries + b.query[i]] += sum[i];
    });
}

// Input and output of sorting one row of one table: see bucket_windows in attentions/common/windows.py. Queries of a
// group of heads are stored one head after the other, each in order of positions; `real` is the first key that is not
// padding.
struct Sort {
  int32_t *query_codes, *key_codes;
  int64_t queries, keys, heads, codes, window, real;
  bool causal;
  const int32_t *limit;  // number of keys not after each query position; null: those up to its own
  int32_t *key_order, *query_order, *start, *end, *oldest, *newest;
};

// Stable counting sort of `count` items by key(item) in [0, keys); place(rank, item) receives the result.
template <typename Key, typename Place>
void counting_sort(int64_t count, int64_t keys, std::vector<int32_t> &next, const Key &key, const Place &place) {
  next.assign(keys + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++next[key(i) + 1];
  for (int64_t c = 0; c < keys; ++c) next[c + 1] += next[c];
  for (int64_t i = 0; i < count; ++i) place(next[key(i)]++, i);
}

// Sorts the keys by code >> shift into `order`, with padding first, and calls found(query, first, reached, last) for
// every query that is not padding: its bucket is [first, last), of which [first, reached) is not after it.
template <typename Found>
void bucket_ranges(const Sort &s, int shift, int32_t *order, const Found &found) {
  const int64_t each = s.queries / s.heads, past = s.keys - each, codes = ((s.codes - 1) >> shift) + 1;
  std::vector<int32_t> next;
  counting_sort(s.keys, codes + 1, next,
                [&](int64_t j) { return j < s.real ? 0 : (s.key_codes[j] >> shift) + 1; },
                [&](int32_t rank, int64_t j) { order[rank] = static_cast<int32_t>(j); });
  // `next` now holds the end of every bucket. Positions ascend below, so one pointer per bucket follows them.
  std::vector<int32_t> reached(next.begin(), next.end() - 2);
  for (int64_t i = s.limit ? 0 : std::max<int64_t>(0, s.real - past); i < each; ++i) {
    const int64_t bound = s.limit ? s.limit[i] : past + i + 1;
    for (int64_t h = 0; h < s.heads; ++h) {
      const int64_t query = h * each + i, code = s.query_codes[query] >> shift;
      int32_t &to = reached[code];
      while (to < next[code + 1] && order[to] < bound) ++to;
      found(query, next[code], to, next[code + 1]);
    }
  }
}

void set_window(const Sort &s, int64_t query, const int32_t *order, int64_t offset, int32_t first, int32_t reached,
                int32_t last) {
  const int64_t from = std::max<int64_t>(first, reached - s.window);
  const int64_t to = s.causal ? reached : std::min<int64_t>(last, reached + s.window);
  s.start[query] = static_cast<int32_t>(offset + from), s.end[query] = static_cast<int32_t>(offset + to);
  s.oldest[query] = from < to ? order[from] : static_cast<int32_t>(s.keys);
  s.newest[query] = from < to ? order[to - 1] : -1;
}

void clear(const Sort &s) {
  std::fill(s.start, s.start + s.queries, 0), std::fill(s.end, s.end + s.queries, 0);
  std::fill(s.oldest, s.oldest + s.queries, static_cast<int32_t>(s.keys));
  std::fill(s.newest, s.newest + s.queries, -1);
}

// Sorts queries by the end of their window: both ends are then monotone, because buckets follow each other.
void order_queries(const Sort &s, int64_t places) {
  const int64_t each = s.queries / s.heads;
  std::vector<int32_t> next;
  auto query = [&](int64_t i) { return i % s.heads * each + i / s.heads; };  // positions ascend, heads innermost
  counting_sort(s.queries, places + 1, next, [&](int64_t i) { return s.end[query(i)]; },
                [&](int32_t rank, int64_t i) { s.query_order[rank] = static_cast<int32_t>(query(i)); });
}

// Copies codes as 32 bits after a range check; codes of padding are not checked.
template <typename Code>
void take_codes(const Sort &s, const Code *of_queries, const Code *of_keys) {
  const int64_t each = s.queries / s.heads, past = s.keys - each;
  const auto in_range = [&](Code code) { return 0 <= code && code < s.codes; };
  for (int64_t j = 0; j < s.keys; ++j) {
    require(j < s.real || in_range(of_keys[j]), "a key's code is not from 0 to codes - 1");
    s.key_codes[j] = static_cast<int32_t>(of_keys[j]);
  }
  for (int64_t i = 0; i < s.queries; ++i) {
    const bool padding = !s.limit && i % each < s.real - past;
    require(padding || in_range(of_queries[i]), "a query's code is not from 0 to codes - 1");
    s.query_codes[i] = static_cast<int32_t>(of_queries[i]);
  }
}

void sort_row(const Sort &s) {
  clear(s);
  bucket_ranges(s, 0, s.key_order, [&](int64_t query, int32_t first, int32_t reached, int32_t last) {
    set_window(s, query, s.key_order, 0, first, reached, last);
  });
  order_queries(s, s.keys);
}

// One tree of an LSH forest: the deepest prefix of the code whose bucket holds at least `fewest` candidates.
void forest_row(const Sort &s, int bits, int64_t fewest, int32_t *shift) {
  clear(s);
  std::fill(shift, shift + s.queries, bits);
  for (int depth = 0; depth <= bits; ++depth) {
    const int64_t offset = depth * s.keys;
    int32_t *order = s.key_order + offset;
    bucket_ranges(s, bits - depth, order, [&](int64_t query, int32_t first, int32_t reached, int32_t last) {
      if (depth && (s.causal ? reached : last) - first < fewest) return;
      set_window(s, query, order, offset, first, reached, last);
      shift[query] = bits - depth;
    });
  }
  order_queries(s, (bits + 1) * s.keys);
}

// `index` holds kPointers pointers per table. `sizes`: rows, queries, keys, dim, value_dim, tables, once, threads,
// resume, and then for each table its places and whether it is by rank.
template <typename T>
Problem<T> problem(const T *q, const T *k, const T *v, const int32_t *const *index, const int64_t *sizes, double scale) {
  Problem<T> p{q, k, v, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], {}, static_cast<T>(scale), sizes[6] != 0,
               static_cast<int>(sizes[7]), sizes[8] != 0};
  for (int64_t t = 0; t < sizes[5]; ++t) {
    const int32_t *const *i = index + kPointers * t;
    p.tables.push_back({i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10], sizes[9 + 2 * t], sizes[10 + 2 * t] != 0});
  }
  return p;
}

}  // namespace

#define EXPORT(T, NAME)                                                                                               \
  extern "C" const char *window_forward_##NAME(const T *q, const T *k, const T *v, const int32_t *const *index,       \
                                               const int64_t *sizes, double scale, T *out, T *lse) {                  \
    return guarded([&] { forward(problem(q, k, v, index, sizes, scale), out, lse); });                                \
  }                                                                                                                   \
  extern "C" const char *window_backward_##NAME(const T *q, const T *k, const T *v, const int32_t *const *index,      \
                                                const int64_t *sizes, double scale, const T *grad, const T *out,      \
                                                const T *lse, T *dq, T *dk, T *dv) {                                  \
    return guarded([&] { backward(problem(q, k, v, index, sizes, scale), grad, out, lse, dq, dk, dv); });             \
  }

EXPORT(float, float32)
EXPORT(double, float64)

extern "C" const char *window_count(const int32_t *const *index, const int64_t *sizes, int64_t *found) {
  return guarded([&] { count(problem<float>(nullptr, nullptr, nullptr, index, sizes, 1.0), found); });
}

// `sizes`: rows, queries, keys, heads of a group, codes, window, causal, threads, and for a forest bits (0 for plain
// windows, which leaves `shift` unchanged) and fewest candidates. `real` has one number per row; `limit` is as in Sort,
// or null. `query_code` and `key_code` receive the codes in 32 bits.
template <typename Code>
void sort_rows(const Code *query_codes, const Code *key_codes, const int64_t *real, const int32_t *limit,
               const int64_t *sizes, int32_t *query_code, int32_t *key_code, int32_t *key_order, int32_t *query_order,
               int32_t *start, int32_t *end, int32_t *oldest, int32_t *newest, int32_t *shift) {
  const int64_t queries = sizes[1], keys = sizes[2], bits = sizes[8];
  parallel(sizes[7], sizes[0], [&](int64_t row) {
    const int64_t q = row * queries, k = row * keys;
    require(0 <= real[row] && real[row] <= keys, "a row's first real key is not from 0 to the number of keys");
    const Sort s{query_code + q, key_code + k, queries, keys, sizes[3], sizes[4], sizes[5], real[row], sizes[6] != 0,
                 limit ? limit + row * (queries / sizes[3]) : nullptr,
                 key_order + k * (bits + 1), query_order + q, start + q, end + q, oldest + q, newest + q};
    take_codes(s, query_codes + q, key_codes + k);
    if (bits)
      forest_row(s, static_cast<int>(bits), sizes[9], shift + q);
    else
      sort_row(s);
  });
}

#define EXPORT_SORT(CODE, NAME)                                                                                       \
  extern "C" const char *window_sort_##NAME(                                                                          \
      const CODE *query_codes, const CODE *key_codes, const int64_t *real, const int32_t *limit,                      \
      const int64_t *sizes, int32_t *query_code, int32_t *key_code, int32_t *key_order, int32_t *query_order,         \
      int32_t *start, int32_t *end, int32_t *oldest, int32_t *newest, int32_t *shift) {                               \
    return guarded([&] {                                                                                              \
      sort_rows(query_codes, key_codes, real, limit, sizes, query_code, key_code, key_order, query_order, start, end, \
                oldest, newest, shift);                                                                               \
    });                                                                                                               \
  }

EXPORT_SORT(int32_t, int32)
EXPORT_SORT(int64_t, int64)
