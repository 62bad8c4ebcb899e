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

// Heads of vectors in a wider matrix: number i of a head of a token lies at base[token · row + head · step + i].
template <class T>
struct Vectors {
    T* base;
    long row, step;
    T* at(long token, long head) const { return base + token * row + head * step; }
};

// What is attended, or its gradients: ``queries`` heads of q, ``keys`` of k and v. Every key is ``own`` numbers of its
// head, and after them ``shared`` ones that all heads have (latent attention; 0 elsewhere).
template <class T>
struct QKV {
    Vectors<T> q, k, common, v;  // common: the shared numbers, as of one head
};

struct AttentionShape {
    long queries, keys, own, shared, value;
    float scale;  // softmax(scale · q kᵀ)
    long key() const { return own + shared; }
    long out() const { return queries * value; }
};

inline AttentionShape shape_of(Heads h) {
    return {h.queries, h.keys, h.width, 0, h.width, 1.0f / std::sqrt(float(h.width))};
}

template <class T>
QKV<T> qkv_of(T* qkv, Heads h) {
    const long W = h.all(), C = h.width;
    return {{qkv, W, C}, {qkv + h.queries * C, W, C}, {nullptr, 0, 0}, {qkv + (h.queries + h.keys) * C, W, C}};
}

// q (S, heads · (own + shared)), kv (S, heads · (own + value)) with key and value of a head in turn, common (S, shared).
template <class T>
QKV<T> qkv_of(T* q, T* kv, T* common, AttentionShape s) {
    const long both = s.own + s.value;
    return {{q, s.queries * s.key(), s.key()}, {kv, s.keys * both, both}, {common, s.shared, 0},
            {kv + s.own, s.keys * both, both}};
}

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

// Vectors of one head, of a segment's parent and its own, into columns of ``out`` (tokens, wide).
template <class Item>
void gather(Vectors<const Item> x, long head, const Segments& s, long i, long width, Item* out, long wide) {
    const long p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]];
    auto copy = [&](long from, long n, Item* to) {
        for (long r = 0; r < n; r++) std::memcpy(to + r * wide, x.at(from + r, head), width * sizeof(Item));
    };
    if (p) copy(s.start[s.parent[i]], p, out);
    copy(s.start[i], s.length[i], out + p * wide);
}

// Keys and values of one head, of a segment's parent and its own, in rows.
template <class Item>
void gather(const QKV<const Item>& x, const AttentionShape& h, long head, const Segments& s, long i, long tokens,
            std::vector<Item>& keys, std::vector<Item>& values) {
    keys.resize(tokens * h.key()), values.resize(tokens * h.value);
    gather(x.k, head, s, i, h.own, keys.data(), h.key());
    if (h.shared) gather(x.common, 0, s, i, h.shared, keys.data() + h.own, h.key());
    gather(x.v, head, s, i, h.value, values.data(), h.value);
}

// → o: (S, queries · value), and log Σ exp of the scores (S, queries).
template <class E>
void attention(const QKV<const typename E::Item>& x, AttentionShape h, Segments s, typename E::Item* o, float* lse) {
    using Item = typename E::Item;
    const long C = h.key(), V = h.value, group = h.queries / h.keys, words = C / E::per, OW = h.out();
    std::vector<Item> keys, values, weights;
    std::vector<Word> key_panels, value_pairs;
    std::vector<float> scores;
    float factor[QUERIES];
    for (long i = 0; i < s.count; i++) {
        const long n = s.length[i], p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]], T = p + n, wide = up(T, 16);
        scores.resize(QUERIES * wide), weights.resize(QUERIES * wide);
        key_panels.resize(wide * words), value_pairs.assign(wide / E::per * V, 0);
        for (long kv = 0; kv < h.keys; kv++) {
            gather<Item>(x, h, kv, s, i, T, keys, values);
            to_panels<E>(keys.data(), T, C, C, key_panels.data());
            to_pairs<E>(values.data(), T, V, V, value_pairs.data());
            for (long q = 0; q < n; q += QUERIES)
                for (long head = kv * group; head < (kv + 1) * group; head++) {
                    const long rows = std::min(QUERIES, n - q), seen = up(p + q + rows, 16), at = s.start[i] + q;
                    product<E>(by_rows(x.q.at(at, head), x.q.row / E::per), of_panels(key_panels.data(), words), rows,
                               seen / 16, words, Put<float>{scores.data(), wide});
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
                            Lanes e = exp((load(row + t) - all(most)) * all(h.scale));
                            if (t + 16 > valid) e = first(e, valid - t);  // exp of -∞ is not 0 but small
                            total = total + e;
                            store(weight + t, e);
                        }
                        for (; t < seen; t += 16) store(weight + t, zero());
                        const float mass = sum(total);
                        factor[r] = 1.0f / mass;
                        lse[(at + r) * h.queries + head] = most * h.scale + std::log(mass);
                    }
                    product<E>(by_rows(weights.data(), wide / E::per), of_pairs(value_pairs.data(), V), rows, V / 16,
                               seen / E::per, PutScaled<Item>{o + at * OW + head * V, OW, factor});
                }
        }
    }
}

// ∂q, ∂k, ∂v in float32, from ∂o in rows.  With P = softmax(S), S = scale · q kᵀ:
// ∂v = Pᵀ ∂o,  ∂S = P ⊙ (∂o vᵀ - ∂o · o),  ∂q = scale ∂S k,  ∂k = scale ∂Sᵀ q.   FlashAttention, arXiv:2205.14135,
// appendix B. The gradient of what heads share is the sum over the heads.
template <class E>
void attention_backward(const QKV<const typename E::Item>& x, const typename E::Item* o,
                        const typename E::Item* d_o, const float* lse, AttentionShape h, Segments s,
                        const QKV<float>& d) {
    using Item = typename E::Item;
    const long C = h.key(), V = h.value, group = h.queries / h.keys, words = C / E::per, OW = h.out();
    std::vector<Item> keys, values, ds_rows;
    std::vector<Word> key_panels, key_pairs, value_panels, p_pairs, ds_pairs;
    std::vector<Word> q_pairs(QUERIES * C), do_pairs(QUERIES * V);
    std::vector<float> scores, dp;
    for (long i = 0; i < s.count; i++) {
        const long n = s.length[i], p = s.parent[i] < 0 ? 0 : s.length[s.parent[i]], T = p + n, wide = up(T, 16);
        scores.resize(QUERIES * wide), dp.resize(QUERIES * wide), ds_rows.resize(QUERIES * wide);
        p_pairs.resize(QUERIES * wide), ds_pairs.resize(QUERIES * wide);
        key_panels.resize(wide * words), value_panels.resize(wide * V / E::per);
        key_pairs.assign(wide / E::per * C, 0);
        auto clear = [&](Vectors<float> of, long head, long width) {
            for (long r = 0; r < n; r++) std::memset(of.at(s.start[i] + r, head), 0, width * sizeof(float));
        };
        for (long kv = 0; kv < h.keys; kv++) clear(d.k, kv, h.own), clear(d.v, kv, V);
        if (h.shared) clear(d.common, 0, h.shared);
        for (long kv = 0; kv < h.keys; kv++) {
            gather<Item>(x, h, kv, s, i, T, keys, values);
            to_panels<E>(keys.data(), T, C, C, key_panels.data());
            to_panels<E>(values.data(), T, V, V, value_panels.data());
            to_pairs<E>(keys.data(), T, C, C, key_pairs.data());
            for (long q = 0; q < n; q += QUERIES)
                for (long head = kv * group; head < (kv + 1) * group; head++) {
                    const long rows = std::min(QUERIES, n - q), seen = up(p + q + rows, 16), at = s.start[i] + q;
                    const Item* query = x.q.at(at, head);
                    const Item *given = d_o + at * OW + head * V, *said = o + at * OW + head * V;
                    product<E>(by_rows(query, x.q.row / E::per), of_panels(key_panels.data(), words), rows, seen / 16,
                               words, Put<float>{scores.data(), wide});
                    product<E>(by_rows(given, OW / E::per), of_panels(value_panels.data(), V / E::per), rows, seen / 16,
                               V / E::per, Put<float>{dp.data(), wide});
                    Lanes delta[QUERIES], norm[QUERIES];
                    for (long r = 0; r < rows; r++) {
                        Lanes along = zero();
                        for (long c = 0; c < V; c += 16)
                            along = fma(load(given + r * OW + c), load(said + r * OW + c), along);
                        delta[r] = all(sum(along)), norm[r] = all(-lse[(at + r) * h.queries + head]);
                    }
                    struct Two { Lanes p, ds; };
                    auto one = [&](long r, long t) -> Two {
                        const long valid = p + q + r + 1;
                        if (r >= rows) return {zero(), zero()};
                        Two out{zero(), zero()};
                        if (t < valid) {
                            out.p = exp(fma(load(&scores[r * wide + t]), all(h.scale), norm[r]));
                            if (t + 16 > valid) out.p = first(out.p, valid - t);
                            out.ds = out.p * (load(&dp[r * wide + t]) - delta[r]) * all(h.scale);
                        }
                        store(&ds_rows[r * wide + t], out.ds);
                        return out;
                    };
                    for (long r = 0; r < rows; r += E::per)
                        for (long t = 0; t < seen; t += 16) {
                            Two a = one(r, t);
                            if constexpr (E::per == 1) {
                                store((float*)&p_pairs[r * wide + t], a.p);
                                store((float*)&ds_pairs[r * wide + t], a.ds);
                            } else {
                                Two b = one(r + 1, t);
                                store(&p_pairs[r / 2 * wide + t], pair(a.p, b.p));
                                store(&ds_pairs[r / 2 * wide + t], pair(a.ds, b.ds));
                            }
                        }
                    product<E>(by_rows(ds_rows.data(), wide / E::per), of_pairs(key_pairs.data(), C), rows, C / 16,
                               seen / E::per, Put<float>{d.q.at(at, head), d.q.row});
                    to_pairs<E>(query, rows, C, x.q.row, q_pairs.data());
                    to_pairs<E>(given, rows, V, OW, do_pairs.data());
                    // Σ over the queries of weights (tokens) times ``of``, columns first … first + width, to the keys
                    auto gradient = [&](const Word* weights, const Word* of, long wide_of, long first, long width,
                                        Vectors<float> to) {
                        const long reduced = up(rows, E::per) / E::per;
                        const Right right = of_pairs(of + first, wide_of);
                        if (p)
                            product<E>(by_pairs(weights, wide), right, p, width / 16, reduced,
                                       Add{to.at(s.start[s.parent[i]], kv), to.row});
                        product<E>(by_pairs(weights + p, wide), right, q + rows, width / 16, reduced,
                                   Add{to.at(s.start[i], kv), to.row});
                    };
                    gradient(ds_pairs.data(), q_pairs.data(), C, 0, h.own, d.k);
                    if (h.shared) gradient(ds_pairs.data(), q_pairs.data(), C, h.own, h.shared, d.common);
                    gradient(p_pairs.data(), do_pairs.data(), V, 0, V, d.v);
                }
        }
    }
}

}  // namespace lt
