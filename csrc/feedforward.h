// The gated net, a block of tokens at a time: what lies between its products stays in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "pointwise.h"

namespace lt {

constexpr long TOKENS = 96;  // of one block

struct Gated {  // matrices of gate and up in turn (2 ffn, width) and of down (width, ffn): in panels, or in pairs
    const Word *gate_up, *down;
    const float *gate_up_bias, *down_bias;
    long width, ffn;
};

// out = x + W_down (silu(gate h) · up h).  h: (rows, width); gate and up themselves go to ``both``, if wanted.
template <class E>
void feedforward(const Gated& w, const typename E::Item* h, const float* x, long rows, float* out,
                 typename E::Item* both) {
    using Item = typename E::Item;
    const long D = w.width, F = w.ffn, per = E::per;
    std::vector<Item> a(std::min(TOKENS, rows) * F);
    for (long first = 0; first < rows; first += TOKENS) {
        const long n = std::min(TOKENS, rows - first);
        product<E>(by_rows(h + first * D, D / per), of_panels(w.gate_up, D / per), n, F / 8, D / per,
                   Swiglu<Item>{a.data(), F, both ? both + first * 2 * F : nullptr, w.gate_up_bias});
        product<E>(by_rows(a.data(), F / per), of_panels(w.down, F / per), n, D / 16, F / per,
                   Add(out + first * D, D, x + first * D, w.down_bias));
    }
}

// ∂h from ∂out in rows; for the gradients of the matrices, a and the gradients of gate and up in pairs.
template <class E>
void feedforward_backward(const Gated& w, const typename E::Item* d_out, const typename E::Item* both, long rows,
                          float* dh, Word* d_both, Word* a) {
    using Item = typename E::Item;
    const long D = w.width, F = w.ffn, per = E::per;
    std::vector<Item> da(std::min(TOKENS, rows) * F), d_rows(std::min(TOKENS, rows) * 2 * F);
    for (long first = 0; first < rows; first += TOKENS) {
        const long n = std::min(TOKENS, rows - first);
        product<E>(by_rows(d_out + first * D, D / per), of_pairs(w.down, F), n, F / 16, D / per, Put<Item>{da.data(), F});
        swiglu_backward<E>(da.data(), both + first * 2 * F, n, F, d_rows.data(), d_both + first / per * 2 * F,
                           a + first / per * F);
        product<E>(by_rows(d_rows.data(), 2 * F / per), of_pairs(w.gate_up, D), n, D / 16, 2 * F / per,
                   Put<float>{dh + first * D, D});
    }
}

}  // namespace lt
