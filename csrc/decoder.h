// The decoder over ragged rows: prompts being read and replies being written are the same kind of row.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <vector>

#include "feedforward.h"
#include "latent.h"
#include "routed.h"

namespace lt {

struct Layer {  // packed matrices in panels; biases and gains may be null, norms never
    const Word *qkv, *out, *gate_up, *down;  // of a routed layer: those of its shared experts, or null
    const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;
    const float *attention_norm, *ffn_norm, *q_gain, *k_gain;
    LatentLayer latent;
    RoutedLayer routed;
};

struct Module {  // what stands around the block of a module of multi-token prediction
    const Word* joined;  // (width, 2 width): of the embedding, then of the state
    const float *embedding_norm, *state_norm, *norm;
};

struct Decoder {
    int64_t vocabulary, width, ffn, layers, ahead, queries, keys, head_width, positions;
    LatentShape latent;
    RoutedShape routed;
    float eps;
    int32_t narrow_embedding;  // whether the embedding is stored in bf16
    const void* embedding;     // (vocabulary, width)
    const Word* head;
    const float *norm, *cos, *sin;
    const Layer* layer;    // layers, then the blocks of the ``ahead`` modules
    const Module* module;

    Heads heads() const { return {queries, keys, head_width}; }
    int64_t padded() const { return up(vocabulary, 16); }
    long routed_layers() const {
        return std::count_if(layer, layer + layers, [](const Layer& one) { return one.routed.router; });
    }
    // The place in ``choices`` (tokens, routed layers, K) of a token's; null where none are wanted.
    int16_t* noted(int16_t* choices, int64_t token) const {
        return choices ? choices + token * routed_layers() * routed.chosen : nullptr;
    }
    // What a layer keeps of a token. Of latent attention c^KV stands twice, in the key and as the value: the two are read
    // in different layouts.
    long kept_heads() const { return latent.kv_rank ? 1 : keys; }
    long kept_key() const { return latent.kv_rank ? latent.key() : head_width; }
    long kept_value() const { return latent.kv_rank ? latent.kv_rank : head_width; }
    float scale() const { return latent.kv_rank ? float(latent.scale) : 1.0f / std::sqrt(float(head_width)); }
};

// Keys and values of a run of tokens. For every layer and head: keys in panels of 16 tokens, values in pairs of tokens.
template <class E>
struct Segment {
    long capacity = 0;
    std::unique_ptr<Word, void (*)(void*)> words{nullptr, std::free};

    void reserve(const Decoder& d, long tokens) {
        if (capacity >= tokens) return;
        capacity = up(tokens, 16);
        words.reset((Word*)std::calloc((d.layers + d.ahead) * d.kept_heads() * block(d), sizeof(Word)));
        if (!words) throw std::bad_alloc();
    }
    long block(const Decoder& d) const { return capacity * (d.kept_key() + d.kept_value()) / E::per; }
    Word* keys(const Decoder& d, long layer, long head) {
        return words.get() + (layer * d.kept_heads() + head) * block(d);
    }
    Word* values(const Decoder& d, long layer, long head) {
        return keys(d, layer, head) + capacity * d.kept_key() / E::per;
    }

    void put(const Decoder& d, long layer, long head, long t, const typename E::Item* k, const typename E::Item* v) {
        constexpr long per = E::per;
        const long C = d.kept_key(), V = d.kept_value();
        Word* panel = keys(d, layer, head) + t / 16 * (C / per) * 16 + t % 16;
        for (long w = 0; w < C / per; w++) std::memcpy(panel + 16 * w, k + per * w, sizeof(Word));
        Word* at = values(d, layer, head) + t / per * V;
        for (long c = 0; c < V; c += 16) {
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
    int16_t* choices = nullptr;  // (routed layers, K): the experts that it goes to are written there, if wanted
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
        x.resize(n * d.width);
        for (long r = 0; r < n; r++) embed(rows[r].token, &x[r * d.width]);
        place(rows, n);
        long routed_before = 0;
        for (long l = 0; l < d.layers; l++) {
            block(rows, n, l, routed_before);
            routed_before += d.layer[l].routed.router != nullptr;
        }
        if (d.ahead) finish(d.norm, n, states);
        else if (wanted) rms_norm(x.data(), d.norm, d.eps, n, d.width, normed.data(), nullptr);
        return wanted ? head(n) : nullptr;
    }

    // h^0 of the rows of the last ``run``, where modules predict further: (n, width).
    const float* hidden() const { return states.data(); }
    // h^(k+1) of the rows of the last ``ahead``, and logits of some of them.
    const float* further() const { return further_states.data(); }

    // Module k, from 0 on, for rows whose tokens are those that it is given, and whose h^k are ``hidden``.
    float* ahead(long k, const Row<E>* rows, long n, const float* hidden, const std::vector<long>& wanted) {
        const Module& m = d.module[k];
        const long D = d.width, words = 2 * D / E::per;
        x.resize(n * D), joined.resize(n * 2 * D);
        for (long r = 0; r < n; r++) {
            embed(rows[r].token, &x[r * D]);
            rms_norm(&x[r * D], m.embedding_norm, d.eps, 1, D, &joined[r * 2 * D], nullptr);
            rms_norm(hidden + r * D, m.state_norm, d.eps, 1, D, &joined[r * 2 * D + D], nullptr);
        }
        product<E>(by_rows(joined.data(), words), of_panels(m.joined, words), n, D / 16, words, Put<float>{x.data(), D});
        place(rows, n);
        block(rows, n, d.layers + k, 0);
        finish(m.norm, n, further_states);
        for (size_t i = 0; i < wanted.size(); i++)
            std::copy_n(&normed[wanted[i] * D], D, &normed[i * D]);
        return wanted.empty() ? nullptr : head(long(wanted.size()));
    }

    // Reads a prompt into an empty segment.  choices: as in ``Row``, of all tokens, one after the other.
    // each(first, count, h^0): is told of every part that was read.
    template <class Each>
    void read(const int32_t* tokens, long n, Segment<E>& into, int16_t* choices, Each each) {
        constexpr long CHUNK = 96;
        into.reserve(d, n);
        std::vector<Row<E>> rows;
        for (long first = 0; first < n; first += CHUNK) {
            rows.clear();
            for (long t = first; t < std::min(n, first + CHUNK); t++)
                rows.push_back({tokens[t], t, first, first, t, &into, &into, d.noted(choices, t)});
            run(rows.data(), long(rows.size()), false);
            each(first, long(rows.size()), hidden());
        }
    }

private:
    void embed(long token, float* to) const {
        if (d.narrow_embedding)
            for (long c = 0; c < d.width; c += 16) store(to + c, load((const bf16*)d.embedding + token * d.width + c));
        else
            std::memcpy(to, (const float*)d.embedding + token * d.width, d.width * sizeof(float));
    }

    void place(const Row<E>* rows, long n) {
        normed.resize(n * d.width), places.resize(n);
        for (long r = 0; r < n; r++) places[r] = rows[r].position;
    }

    // Block number l on x; the experts that it chooses are those of routed layer number ``routed_before``.
    void block(const Row<E>* rows, long n, long l, long routed_before) {
        const Layer& w = d.layer[l];
        rms_norm(x.data(), w.attention_norm, d.eps, n, d.width, normed.data(), nullptr);
        if (d.latent.kv_rank) latent_attention(rows, n, l);
        else grouped_attention(rows, n, l);
        if (w.routed.router) routed(rows, n, l, routed_before);
        else net(w, n, d.ffn);
    }

    // The last norm of x, as float32 and, in ``normed``, as items.
    void finish(const float* gain, long n, std::vector<float>& out) {
        out.resize(n * d.width);
        rms_norm(x.data(), gain, d.eps, n, d.width, out.data(), nullptr);
        to_rows<E>(out.data(), n, d.width, d.width, normed.data());
    }

    float* head(long n) {
        const long D = d.width, words = D / E::per;
        logits.resize(n * d.padded());
        product<E>(by_rows(normed.data(), words), of_panels(d.head, words), n, d.padded() / 16, words,
                   Put<float>{logits.data(), d.padded()});
        return logits.data();
    }

    // x += W^O attention(normed)
    void grouped_attention(const Row<E>* rows, long n, long l) {
        const Heads h = d.heads();
        const Layer& w = d.layer[l];
        const long D = d.width, per = E::per;
        raw.resize(n * h.all()), qkv.resize(n * h.all()), o.resize(n * h.queries * h.width);
        product<E>(by_rows(normed.data(), D / per), of_panels(w.qkv, D / per), n, h.all() / 16, D / per,
                   Put<float>{raw.data(), h.all(), w.qkv_bias});
        rotary(raw.data(), h, w.q_gain, w.k_gain, d.eps, d.cos, d.sin, places.data(), n, qkv.data());
        for (long r = 0; r < n; r++)
            for (long kv = 0; kv < h.keys; kv++) {
                const Item* key = &qkv[r * h.all() + (h.queries + kv) * h.width];
                rows[r].own->put(d, l, kv, rows[r].at, key, key + h.keys * h.width);
            }
        attend(rows, n, l, qkv.data(), h.all());
        add_out(w, n, h.queries * h.width, o.data());
    }

    void latent_attention(const Row<E>* rows, long n, long l) {
        const LatentShape& s = d.latent;
        const Layer& w = d.layer[l];
        o.resize(n * d.queries * s.kv_rank), by_head.resize(n * d.queries * s.value);
        latents.make(s, w.latent, d.queries, normed.data(), n, d.width, d.cos, d.sin, places.data());
        for (long r = 0; r < n; r++) {
            const Item* key = &latents.keys[r * s.key()];
            rows[r].own->put(d, l, 0, rows[r].at, key, key);
        }
        attend(rows, n, l, latents.queries.data(), d.queries * s.key());
        latents.results(s, w.latent, d.queries, o.data(), n, by_head.data());
        add_out(w, n, d.queries * s.value, by_head.data());
    }

    void add_out(const Layer& w, long n, long width, const Item* results) {
        product<E>(by_rows(results, width / E::per), of_panels(w.out, width / E::per), n, d.width / 16, width / E::per,
                   Add{x.data(), d.width, nullptr, w.out_bias});
    }

    // x += net(norm(x))
    void net(const Layer& w, long n, long ffn) {
        rms_norm(x.data(), w.ffn_norm, d.eps, n, d.width, normed.data(), nullptr);
        add_net(w, n, ffn);
    }

    void add_net(const Layer& w, long n, long ffn) {
        feedforward<E>(Gated{w.gate_up, w.down, w.gate_up_bias, w.down_bias, d.width, ffn}, normed.data(), x.data(), n,
                       x.data(), nullptr);
    }

    // The same with routed experts, of which this is layer number ``place``.
    void routed(const Row<E>* rows, long n, long l, long place) {
        const Layer& w = d.layer[l];
        exact.resize(n * d.width);
        rms_norm(x.data(), w.ffn_norm, d.eps, n, d.width, exact.data(), nullptr);
        to_rows<E>(exact.data(), n, d.width, d.width, normed.data());
        const Choices choices = router.choose(d.routed, w.routed, exact.data(), n, d.width);
        experts<E>(Gated{w.routed.gate_up, w.routed.down, nullptr, nullptr, d.width, d.routed.ffn}, choices, normed.data(),
                   x.data(), nullptr);
        if (d.routed.shared) add_net(w, n, d.routed.shared);
        const long K = d.routed.chosen;
        for (long r = 0; r < n; r++)
            if (rows[r].choices) std::copy_n(&router.chosen[r * K], K, rows[r].choices + place * K);
    }

    // All rows; queries (n, heads, key), ``stride`` items apart → o (n, heads, value).
    void attend(const Row<E>* rows, long n, long layer, const Item* q, long stride) {
        for (long r = 0, some; r < n; r += some) {
            for (some = 1; some < TOGETHER && r + some < n && rows[r + some].prefix == rows[r].prefix &&
                           rows[r + some].before == rows[r].before;) some++;
            meet(rows + r, some, layer, q + r * stride, stride, &o[r * d.queries * d.kept_value()]);
        }
    }

    // Rows with one prefix. The queries of all of them, of all heads that share a key head, meet it in one product.
    void meet(const Row<E>* rows, long n, long layer, const Item* q, long stride, Item* out) {
        const long C = d.kept_key(), V = d.kept_value(), heads = d.kept_heads();
        const long per = E::per, group = d.queries / heads, before = rows->before, gap = up(before, 16);
        long longest = 0;
        for (long r = 0; r < n; r++) longest = std::max(longest, rows[r].at + 1 - rows[r].from);
        const long wide = gap + up(longest, 16), all_rows = n * group;
        const float scale = d.scale();
        queries.resize(all_rows * C), sums.resize(all_rows * V);
        scores.resize(all_rows * wide), weights.resize(all_rows * wide), factor.resize(all_rows);
        for (long kv = 0; kv < heads; kv++) {
            for (long r = 0; r < n; r++)
                std::memcpy(&queries[r * group * C], q + r * stride + kv * group * C, group * C * sizeof(Item));
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
                           of_pairs(row.own->values(d, layer, kv) + row.from / per * V, V), group, V / 16,
                           up(own, per) / per, Put<float>{&sums[first * V], V});
            }
            if (before)
                product<E>(by_rows(weights.data(), wide / per), of_pairs(rows->prefix->values(d, layer, kv), V), all_rows,
                           V / 16, up(before, per) / per, Add{sums.data(), V});
            for (long g = 0; g < all_rows; g++) {
                Item* to = out + g / group * d.queries * V + (kv * group + g % group) * V;
                for (long c = 0; c < V; c += 16) store(to + c, load(&sums[g * V + c]) * all(factor[g]));
            }
        }
    }

    // Has fetched what the next row will read.
    void expect(const Row<E>& row, long layer, long kv) const {
        auto fetch = [&](const Word* from, long width) {
            const long bytes = (row.at + 1) * width * long(sizeof(Item));
            for (long b = 0; b < bytes; b += 64) __builtin_prefetch((const char*)from + b, 0, 2);
        };
        fetch(row.own->keys(d, layer, kv), d.kept_key());
        fetch(row.own->values(d, layer, kv), d.kept_value());
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
    std::vector<float> x, exact, raw, logits, scores, sums, factor, states, further_states;
    std::vector<Item> normed, joined, qkv, o, by_head, queries, weights;
    std::vector<int64_t> places;
    LatentHeads<E> latents;
    Router router;
};

}  // namespace lt
