// Multi-head latent attention in its absorbed form: W^UK goes to the queries and W^UV to the results, and what is
// attended is (c^KV, k^R), one key head for all queries. DeepSeek-V2, arXiv:2405.04434, appendix B.
#pragma once

#include <vector>

#include "pointwise.h"

namespace lt {

constexpr float LATENT_EPS = 1e-6f;  // of the norms on latents, whatever that of the model is

struct LatentShape {  // kv_rank: d_c, 0 without latent attention; q_rank: d_c', 0 where queries are not compressed
    int64_t q_rank, kv_rank, plain, turned, value;  // the others: d_h, d_h^R, and d_h of values
    double scale;
    long key() const { return kv_rank + turned; }
};

// Packed matrices in panels, in the order of the heads. What is rotated stands in halves.
struct LatentLayer {
    const Word* down;      // W^Q or W^DQ, W^DKV, W^KR
    const Word* queries;   // W^UQ and W^QR by heads; null where ``down`` makes the queries
    const Word* absorbed;  // W^UK of every head, transposed
    const Word* expanded;  // W^UK and W^UV by heads
    const float *down_bias, *q_norm, *kv_norm;
};

template <class E>
class LatentHeads {
    using Item = typename E::Item;

public:
    std::vector<Item> queries, keys;  // (n, heads, key), (n, key): the first kv_rank numbers of a key are the value, too

    // Queries and keys of n rows.  normed: (n, width).
    void make(const LatentShape& s, const LatentLayer& w, long heads, const Item* normed, long n, long width,
              const float* cos, const float* sin, const int64_t* places) {
        constexpr long per = E::per;
        const long Q = heads * (s.plain + s.turned), first = s.q_rank ? s.q_rank : Q, all = first + s.key();
        raw.resize(n * all), keys.resize(n * s.key()), queries.resize(n * heads * s.key()), plain.resize(n * heads * s.plain);
        product<E>(by_rows(normed, width / per), of_panels(w.down, width / per), n, all / 16, width / per,
                   Put<float>{raw.data(), all, w.down_bias});
        const float* q = raw.data();
        long stride = all;
        if (s.q_rank) {
            compressed.resize(n * s.q_rank), expanded.resize(n * Q);
            for (long r = 0; r < n; r++)
                rms_norm(&raw[r * all], w.q_norm, LATENT_EPS, 1, s.q_rank, &compressed[r * s.q_rank], nullptr);
            product<E>(by_rows(compressed.data(), s.q_rank / per), of_panels(w.queries, s.q_rank / per), n, Q / 16,
                       s.q_rank / per, Put<float>{expanded.data(), Q});
            q = expanded.data(), stride = Q;
        }
        for (long r = 0; r < n; r++, q += stride) {
            const float *c = cos + places[r] * s.turned, *t = sin + places[r] * s.turned, *latent = &raw[r * all + first];
            rms_norm(latent, w.kv_norm, LATENT_EPS, 1, s.kv_rank, &keys[r * s.key()], nullptr);
            turn(latent + s.kv_rank, c, t, s.turned, &keys[r * s.key() + s.kv_rank]);
            for (long head = 0; head < heads; head++) {
                const float* own = q + head * (s.plain + s.turned);
                for (long i = 0; i < s.plain; i += 16) store(&plain[(r * heads + head) * s.plain + i], load(own + i));
                turn(own + s.plain, c, t, s.turned, &queries[(r * heads + head) * s.key() + s.kv_rank]);
            }
        }
        for (long head = 0; head < heads; head++)
            product<E>(Left{(const Word*)&plain[head * s.plain], heads * s.plain / per, 1},
                       of_panels(w.absorbed + head * s.kv_rank * s.plain / per, s.plain / per), n, s.kv_rank / 16,
                       s.plain / per, Put<Item>{&queries[head * s.key()], heads * s.key()});
    }

    // W^UV of every head.  summed: (n, heads, kv_rank) → out (n, heads, value).
    void results(const LatentShape& s, const LatentLayer& w, long heads, const Item* summed, long n, Item* out) const {
        constexpr long per = E::per;
        for (long head = 0; head < heads; head++) {
            const Word* values = w.expanded + (head * (s.plain + s.value) + s.plain) * s.kv_rank / per;
            product<E>(Left{(const Word*)&summed[head * s.kv_rank], heads * s.kv_rank / per, 1},
                       of_panels(values, s.kv_rank / per), n, s.value / 16, s.kv_rank / per,
                       Put<Item>{out + head * s.value, heads * s.value});
        }
    }

private:
    void turn(const float* x, const float* cos, const float* sin, long width, Item* out) {
        turned.resize(width);
        rotate(x, cos, sin, 1.0f, width, turned.data());
        for (long i = 0; i < width; i += 16) store(out + i, load(&turned[i]));
    }

    std::vector<float> raw, expanded, turned;
    std::vector<Item> compressed, plain;
};

}  // namespace lt
