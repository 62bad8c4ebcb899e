// The decoder over ragged rows: prompts being read and replies being written are the same kind of row.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "feedforward.h"

namespace lt {

struct Layer {  // packed matrices in panels; biases and gains may be null, norms never
    const Word *qkv, *out, *gate_up, *down;
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    const float *attention_norm, *ffn_norm, *q_gain, *k_gain;
};

struct Decoder {
    int64_t vocabulary, width, ffn, layers, queries, keys, head_width, positions;
    float eps;
    int32_t narrow_embedding;  // whether the embedding is stored in bf16
    const void* embedding;     // (vocabulary, width)
    const Word* head;
    const float *norm, *cos, *sin;
    const Layer* layer;

    Heads heads() const { return {queries, keys, head_width}; }
    int64_t padded() const { return up(vocabulary, 16); }
};

// Keys and values of a run of tokens. For every layer and head: keys in panels of 16 tokens, values in pairs of tokens.
template <class E>
struct Segment {
    long capacity = 0;
    std::unique_ptr<Word, void (*)(void*)> words{nullptr, std::free};

    void reserve(const Decoder& d, long tokens) {
        if (capacity >= tokens) return;
        capacity = up(tokens, 16);
        words.reset((Word*)std::calloc(d.layers * d.keys * 2 * block(d), sizeof(Word)));
        if (!words) throw std::bad_alloc();
    }
    long block(const Decoder& d) const { return capacity * d.head_width / E::per; }
    Word* keys(const Decoder& d, long layer, long head) { return words.get() + 2 * (layer * d.keys + head) * block(d); }
    Word* values(const Decoder& d, long layer, long head) { return keys(d, layer, head) + block(d); }

    void put(const Decoder& d, long layer, long head, long t, const typename E::Item* k, const typename E::Item* v) {
        constexpr long per = E::per;
        const long C = d.head_width;
        Word* panel = keys(d, layer, head) + t / 16 * (C / per) * 16 + t % 16;
        for (long w = 0; w < C / per; w++) std::memcpy(panel + 16 * w, k + per * w, sizeof(Word));
        Word* at = values(d, layer, head) + t / per * C;
        for (long c = 0; c < C; c += 16) {
            if constexpr (per == 1) store((float*)at + c, load(v + c));
            else if (t % 2 == 0) store(at + c, pair(load(v + c), zero()));
            else store(at + c, pair(low(load(at + c)), load(v + c)));
        }
    }
};

// One token, number ``at`` of its segment ``own``. It sees the first ``before`` tokens of ``prefix``, and those of its
// own segment from number ``from`` (a multiple of 16) on.
template <class E>
struct Row {
    int32_t token;
    long position, before, from, at;
    Segment<E>*prefix, *own;
};

// The working memory of one thread.
template <class E>
class Pass {
    using Item = typename E::Item;
    static constexpr long TOGETHER = 16;  // rows whose queries meet their prefix in one product

public:
    explicit Pass(const Decoder& decoder) : d(decoder) {}

    // Reads the rows, stores their keys and values, and, if wanted, gives the logits: (n, padded vocabulary).
    float* run(const Row<E>* rows, long n, bool wanted) {
        const Heads h = d.heads();
        const long D = d.width, per = E::per, OW = h.queries * h.width;
        x.resize(n * D), normed.resize(n * D), raw.resize(n * h.all()), qkv.resize(n * h.all()), o.resize(n * OW);
        places.resize(n);
        for (long r = 0; r < n; r++) {
            places[r] = rows[r].position;
            embed(rows[r].token, &x[r * D]);
        }
        for (long l = 0; l < d.layers; l++) {
            const Layer& w = d.layer[l];
            rms_norm(x.data(), w.attention_norm, d.eps, n, D, normed.data(), nullptr);
            product<E>(by_rows(normed.data(), D / per), of_panels(w.qkv, D / per), n, h.all() / 16, D / per,
                       Put<float>{raw.data(), h.all(), w.qkv_bias});
            rotary(raw.data(), h, w.q_gain, w.k_gain, d.eps, d.cos, d.sin, places.data(), n, qkv.data());
            for (long r = 0; r < n; r++)
                for (long kv = 0; kv < h.keys; kv++) {
                    const Item* key = &qkv[r * h.all() + (h.queries + kv) * h.width];
                    rows[r].own->put(d, l, kv, rows[r].at, key, key + h.keys * h.width);
                }
            for (long r = 0, some; r < n; r += some) {
                for (some = 1; some < TOGETHER && r + some < n && rows[r + some].prefix == rows[r].prefix &&
                               rows[r + some].before == rows[r].before;) some++;
                attend(rows + r, some, l, &qkv[r * h.all()], &o[r * OW]);
            }
            product<E>(by_rows(o.data(), OW / per), of_panels(w.out, OW / per), n, D / 16, OW / per,
                       Add{x.data(), D, nullptr, w.out_bias});
            rms_norm(x.data(), w.ffn_norm, d.eps, n, D, normed.data(), nullptr);
            feedforward<E>(Gated{w.gate_up, w.down, w.gate_up_bias, w.down_bias, D, d.ffn}, normed.data(), x.data(), n,
                           x.data(), nullptr);
        }
        if (!wanted) return nullptr;
        rms_norm(x.data(), d.norm, d.eps, n, D, normed.data(), nullptr);
        logits.resize(n * d.padded());
        product<E>(by_rows(normed.data(), D / per), of_panels(d.head, D / per), n, d.padded() / 16, D / per,
                   Put<float>{logits.data(), d.padded()});
        return logits.data();
    }

    // Reads a prompt into an empty segment.
    void read(const int32_t* tokens, long n, Segment<E>& into) {
        constexpr long CHUNK = 96;
        into.reserve(d, n);
        std::vector<Row<E>> rows;
        for (long first = 0; first < n; first += CHUNK) {
            rows.clear();
            for (long t = first; t < std::min(n, first + CHUNK); t++)
                rows.push_back({tokens[t], t, first, first, t, &into, &into});
            run(rows.data(), long(rows.size()), false);
        }
    }

private:
    void embed(long token, float* to) const {
        if (d.narrow_embedding)
            for (long c = 0; c < d.width; c += 16) store(to + c, load((const bf16*)d.embedding + token * d.width + c));
        else
            std::memcpy(to, (const float*)d.embedding + token * d.width, d.width * sizeof(float));
    }

    // Rows with one prefix. The queries of all of them, of all heads that share a key head, meet it in one product.
    void attend(const Row<E>* rows, long n, long layer, const Item* q, Item* out) {
        const Heads h = d.heads();
        const long C = h.width, per = E::per, group = h.queries / h.keys, before = rows->before, gap = up(before, 16);
        long longest = 0;
        for (long r = 0; r < n; r++) longest = std::max(longest, rows[r].at + 1 - rows[r].from);
        const long wide = gap + up(longest, 16), all_rows = n * group;
        const float scale = 1.0f / std::sqrt(float(C));
        queries.resize(all_rows * C), sums.resize(all_rows * C);
        scores.resize(all_rows * wide), weights.resize(all_rows * wide), factor.resize(all_rows);
        for (long kv = 0; kv < h.keys; kv++) {
            for (long r = 0; r < n; r++)
                std::memcpy(&queries[r * group * C], q + r * h.all() + kv * group * C, group * C * sizeof(Item));
            if (before)
                product<E>(by_rows(queries.data(), C / per), of_panels(rows->prefix->keys(d, layer, kv), C / per), all_rows,
                           gap / 16, C / per, Put<float>{scores.data(), wide});
            for (long r = 0; r < n; r++) {
                if (r + 1 < n) expect(rows[r + 1], layer, kv);
                const Row<E>& row = rows[r];
                const long own = row.at + 1 - row.from, first = r * group;
                product<E>(by_rows(&queries[first * C], C / per),
                           of_panels(row.own->keys(d, layer, kv) + row.from * (C / per), C / per), group,
                           up(own, 16) / 16, C / per, Put<float>{&scores[first * wide + gap], wide});
                for (long g = first; g < first + group; g++)
                    factor[g] = 1.0f / soften(&scores[g * wide], before, gap, gap + own, scale, &weights[g * wide]);
                product<E>(Left{(const Word*)&weights[first * wide + gap], wide / per, 1},
                           of_pairs(row.own->values(d, layer, kv) + row.from / per * C, C), group, C / 16,
                           up(own, per) / per, Put<float>{&sums[first * C], C});
            }
            if (before)
                product<E>(by_rows(weights.data(), wide / per), of_pairs(rows->prefix->values(d, layer, kv), C), all_rows,
                           C / 16, up(before, per) / per, Add{sums.data(), C});
            for (long g = 0; g < all_rows; g++) {
                Item* to = out + g / group * h.queries * C + (kv * group + g % group) * C;
                for (long c = 0; c < C; c += 16) store(to + c, load(&sums[g * C + c]) * all(factor[g]));
            }
        }
    }

    // Has fetched what the next row will read.
    void expect(const Row<E>& row, long layer, long kv) const {
        const long bytes = (row.at + 1) * d.head_width * long(sizeof(Item));
        const char *k = (const char*)row.own->keys(d, layer, kv), *v = (const char*)row.own->values(d, layer, kv);
        for (long b = 0; b < bytes; b += 64) __builtin_prefetch(k + b, 0, 2), __builtin_prefetch(v + b, 0, 2);
    }

    // e^(scale (s - max s)) over [0, before) and [gap, end), 0 elsewhere; returns the sum.
    static float soften(float* s, long before, long gap, long end, float scale, Item* out) {
        for (long t = before; t < gap; t++) s[t] = -INFINITY;
        for (long t = end; t < up(end, 16); t++) s[t] = -INFINITY;
        Lanes top = load(s), total = zero();
        for (long t = 16; t < end; t += 16) top = max(top, load(s + t));
        const float most = highest(top);
        for (long t = 0; t < end; t += 16) {
            const long valid = (t < gap ? before : end) - t;
            Lanes e = exp((load(s + t) - all(most)) * all(scale));
            if (valid < 16) e = first(e, valid);  // exp of -∞ is not 0 but small
            total = total + e;
            store(out + t, e);
        }
        return sum(total);
    }

    const Decoder& d;
    std::vector<float> x, raw, logits, scores, sums, factor;
    std::vector<Item> normed, qkv, o, queries, weights;
    std::vector<int64_t> places;
};

}  // namespace lt
