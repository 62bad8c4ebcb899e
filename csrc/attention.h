// Causal attention over packed tokens, forward and backward. A segment is a run of tokens that attend to each other and
// to a whole earlier segment, their parent: the replies of a group share the tokens of their prompt.
#pragma once

#include <vector>

#include "pointwise.h"

namespace lt {

struct Segments {
    const int64_t *start, *length, *parent;  // parent: an earlier segment, or -1
    long count;
};


template <class T>
struct PutScaled {
    T* c;
    long width;
    const float* factor;
    Lanes start(long, long) const { return zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        for (int j = 0; j < P; j++) store(c + m * width + 16 * (p + j), x[j] * all(factor[m]));
    }
};

constexpr long QUERIES = 48;  // of one block

// Keys or values of a segment's parent and its own, one kv head, in rows.
template <class Item>
void gather(const Item* x, const Segments& s, long i, long stride, long width, std::vector<Item>& out) {
    long p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]];
    out.resize((p + s.length[i]) * width);
    auto copy = [&](long from, long n, Item* to) {
        for (long r = 0; r < n; r++) std::memcpy(to + r * width, x + (from + r) * stride, width * sizeof(Item));
    };
    if (p) copy(s.start[s.parent[i]], p, out.data());
    copy(s.start[i], s.length[i], out.data() + p * width);
}

// qkv: (S, heads.all()) → o: (S, queries · width), and log Σ exp of the scores (S, queries).
template <class E>
void attention(const typename E::Item* qkv, Heads h, Segments s, typename E::Item* o, float* lse) {
    using Item = typename E::Item;
    const long W = h.all(), C = h.width, group = h.queries / h.keys, words = C / E::per, OW = h.queries * C;
    const float scale = 1.0f / std::sqrt(float(C));
    std::vector<Item> keys, values, weights;
    std::vector<Word> key_panels, value_pairs;
    std::vector<float> scores;
    float factor[QUERIES];
    for (long i = 0; i < s.count; i++) {
        const long n = s.length[i], p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]], T = p + n, wide = up(T, 16);
        scores.resize(QUERIES * wide), weights.resize(QUERIES * wide);
        key_panels.resize(wide * words), value_pairs.assign(wide / E::per * C, 0);
        for (long kv = 0; kv < h.keys; kv++) {
            gather(qkv + (h.queries + kv) * C, s, i, W, C, keys);
            gather(qkv + (h.queries + h.keys + kv) * C, s, i, W, C, values);
            to_panels<E>(keys.data(), T, C, C, key_panels.data());
            to_pairs<E>(values.data(), T, C, C, value_pairs.data());
            for (long q = 0; q < n; q += QUERIES)
                for (long head = kv * group; head < (kv + 1) * group; head++) {
                    const long rows = std::min(QUERIES, n - q), seen = up(p + q + rows, 16);
                    const Item* query = qkv + (s.start[i] + q) * W + head * C;
                    product<E>(by_rows(query, W / E::per), of_panels(key_panels.data(), words), rows, seen / 16, words,
                               Put<float>{scores.data(), wide});
                    for (long r = 0; r < rows; r++) {
                        float* row = scores.data() + r * wide;
                        const long valid = p + q + r + 1;
                        for (long t = valid; t < seen; t++) row[t] = -INFINITY;
                        Lanes top = load(row), total = zero();
                        for (long t = 16; t < valid; t += 16) top = max(top, load(row + t));
                        const float most = highest(top);
                        Item* weight = weights.data() + r * wide;
                        long t = 0;
                        for (; t < valid; t += 16) {
                            Lanes e = exp((load(row + t) - all(most)) * all(scale));
                            if (t + 16 > valid) e = first(e, valid - t);  // exp of -∞ is not 0 but small
                            total = total + e;
                            store(weight + t, e);
                        }
                        for (; t < seen; t += 16) store(weight + t, zero());
                        const float mass = sum(total);
                        factor[r] = 1.0f / mass;
                        lse[(s.start[i] + q + r) * h.queries + head] = most * scale + std::log(mass);
                    }
                    product<E>(by_rows(weights.data(), wide / E::per), of_pairs(value_pairs.data(), C), rows, C / 16,
                               seen / E::per,
                               PutScaled<Item>{o + (s.start[i] + q) * OW + head * C, OW, factor});
                }
        }
    }
}

// ∂qkv (S, heads.all()) float32, from ∂o in rows.  With P = softmax(S), S = q kᵀ/√C:
// ∂v = Pᵀ ∂o,  ∂S = P ⊙ (∂o vᵀ - ∂o · o),  ∂q = ∂S k/√C,  ∂k = ∂Sᵀ q/√C.   FlashAttention, arXiv:2205.14135, appendix B.
template <class E>
void attention_backward(const typename E::Item* qkv, const typename E::Item* o, const typename E::Item* d_o,
                        const float* lse, Heads h, Segments s, float* d) {
    using Item = typename E::Item;
    const long W = h.all(), C = h.width, group = h.queries / h.keys, words = C / E::per, OW = h.queries * C;
    const float scale = 1.0f / std::sqrt(float(C));
    std::vector<Item> keys, values, ds_rows;
    std::vector<Word> key_panels, key_pairs, value_panels, p_pairs, ds_pairs, q_pairs(QUERIES * C), do_pairs(QUERIES * C);
    std::vector<float> scores, dp;
    for (long i = 0; i < s.count; i++) {
        const long n = s.length[i], p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]], T = p + n, wide = up(T, 16);
        scores.resize(QUERIES * wide), dp.resize(QUERIES * wide), ds_rows.resize(QUERIES * wide);
        p_pairs.resize(QUERIES * wide), ds_pairs.resize(QUERIES * wide);
        key_panels.resize(wide * words), value_panels.resize(wide * words), key_pairs.assign(wide / E::per * C, 0);
        float *own = d + s.start[i] * W, *before = p ? d + s.start[s.parent[i]] * W : nullptr;
        for (long r = 0; r < n; r++) std::memset(own + r * W + h.queries * C, 0, 2 * h.keys * C * sizeof(float));
        for (long kv = 0; kv < h.keys; kv++) {
            const long key_at = (h.queries + kv) * C, value_at = (h.queries + h.keys + kv) * C;
            gather(qkv + key_at, s, i, W, C, keys);
            gather(qkv + value_at, s, i, W, C, values);
            to_panels<E>(keys.data(), T, C, C, key_panels.data());
            to_panels<E>(values.data(), T, C, C, value_panels.data());
            to_pairs<E>(keys.data(), T, C, C, key_pairs.data());
            for (long q = 0; q < n; q += QUERIES)
                for (long head = kv * group; head < (kv + 1) * group; head++) {
                    const long rows = std::min(QUERIES, n - q), seen = up(p + q + rows, 16), at = s.start[i] + q;
                    const Item* query = qkv + at * W + head * C;
                    const Item *given = d_o + at * OW + head * C, *said = o + at * OW + head * C;
                    product<E>(by_rows(query, W / E::per), of_panels(key_panels.data(), words), rows, seen / 16, words,
                               Put<float>{scores.data(), wide});
                    product<E>(by_rows(given, OW / E::per), of_panels(value_panels.data(), words), rows, seen / 16, words,
                               Put<float>{dp.data(), wide});
                    Lanes delta[QUERIES], norm[QUERIES];
                    for (long r = 0; r < rows; r++) {
                        Lanes along = zero();
                        for (long c = 0; c < C; c += 16)
                            along = fma(load(given + r * OW + c), load(said + r * OW + c), along);
                        delta[r] = all(sum(along)), norm[r] = all(-lse[(at + r) * h.queries + head]);
                    }
                    struct Two { Lanes p, ds; };
                    auto one = [&](long r, long t) -> Two {
                        const long valid = p + q + r + 1;
                        if (r >= rows) return {zero(), zero()};
                        Two out{zero(), zero()};
                        if (t < valid) {
                            out.p = exp(fma(load(&scores[r * wide + t]), all(scale), norm[r]));
                            if (t + 16 > valid) out.p = first(out.p, valid - t);
                            out.ds = out.p * (load(&dp[r * wide + t]) - delta[r]) * all(scale);
                        }
                        store(&ds_rows[r * wide + t], out.ds);
                        return out;
                    };
                    for (long r = 0; r < rows; r += E::per)
                        for (long t = 0; t < seen; t += 16) {
                            Two x = one(r, t);
                            if constexpr (E::per == 1) {
                                store((float*)&p_pairs[r * wide + t], x.p);
                                store((float*)&ds_pairs[r * wide + t], x.ds);
                            } else {
                                Two y = one(r + 1, t);
                                store(&p_pairs[r / 2 * wide + t], pair(x.p, y.p));
                                store(&ds_pairs[r / 2 * wide + t], pair(x.ds, y.ds));
                            }
                        }
                    product<E>(by_rows(ds_rows.data(), wide / E::per), of_pairs(key_pairs.data(), C), rows, C / 16,
                               seen / E::per, Put<float>{d + at * W + head * C, W});
                    to_pairs<E>(query, rows, C, W, q_pairs.data());
                    to_pairs<E>(given, rows, C, OW, do_pairs.data());
                    auto gradient = [&](const Word* weights, const Word* of, long where) {
                        const long reduced = up(rows, E::per) / E::per;
                        const Right right = of_pairs(of, C);
                        if (p) product<E>(by_pairs(weights, wide), right, p, C / 16, reduced, Add{before + where, W});
                        product<E>(by_pairs(weights + p, wide), right, q + rows, C / 16, reduced, Add{own + where, W});
                    };
                    gradient(ds_pairs.data(), q_pairs.data(), key_at);
                    gradient(p_pairs.data(), do_pairs.data(), value_at);
                }
        }
    }
}

}  // namespace lt
