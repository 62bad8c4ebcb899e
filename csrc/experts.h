// Routed experts: the tokens that chose an expert are gathered, pass its gated net, and are added to where they came
// from. No token is dropped, and none depends on another: a result is a sum in the order of the experts.
#pragma once

#include <algorithm>
#include <vector>

#include "feedforward.h"

namespace lt {

// What tokens chose. order: the numbers of the choices (token · each + k), those of expert e from place first[e] on, in
// the order of the tokens.  first: (experts + 1,).  gates: of every choice.
struct Choices {
    const int64_t *order, *first;
    const float* gates;
    long experts, each;
};

// Sorts choices (count,), each below ``experts``, by counting them.
inline void by_expert(const int64_t* chosen, long count, long experts, int64_t* order, int64_t* first) {
    std::fill(first, first + experts + 1, 0);
    for (long i = 0; i < count; i++) first[chosen[i] + 1]++;
    for (long e = 0; e < experts; e++) first[e + 1] += first[e];
    std::vector<int64_t> next(first, first + experts);
    for (long i = 0; i < count; i++) order[next[chosen[i]]++] = i;
}

struct AddRows {  // C[row of m] += factor of m · (A B)[m]
    float* c;
    long width;
    const int64_t* row;
    const float* factor = nullptr;
    Lanes start(long, long) const { return zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        float* at = c + row[m] * width + 16 * p;
        for (int j = 0; j < P; j++) store(at + 16 * j, fma(x[j], all(factor ? factor[m] : 1.0f), load(at + 16 * j)));
    }
};

struct Parted {  // rows that are gate and up by pieces of 16, to the one and the other; put there, or added
    float *gate, *up;
    long width;
    bool add;
    Lanes start(long, long) const { return zero(); }
    template <int P> void finish(long m, long p, const Lanes* x) const {
        float* at = (m / 16 % 2 ? up : gate) + (m / 32 * 16 + m % 16) * width + 16 * p;
        for (int j = 0; j < P; j++) store(at + 16 * j, add ? load(at + 16 * j) + x[j] : x[j]);
    }
};

// Some choices of one expert.
template <class E>
struct Gathered {
    using Item = typename E::Item;
    int64_t token[TOKENS];
    float gate[TOKENS];
    long count;

    Gathered(const Choices& c, long from, long count) : count(count) {
        for (long i = 0; i < count; i++) token[i] = c.order[from + i] / c.each, gate[i] = c.gates[c.order[from + i]];
    }
    void rows(const Item* x, long width, Item* out) const {
        for (long i = 0; i < count; i++) std::memcpy(out + i * width, x + token[i] * width, width * sizeof(Item));
    }
};

// The net of one expert, of matrices that stand one behind the other.
inline Gated expert(const Gated& w, long number, long per) {
    const long words = w.width * w.ffn / per;
    return {w.gate_up + number * 2 * words, w.down + number * words, nullptr, nullptr, w.width, w.ffn};
}

// out += Σ gate · net of the expert (h), over the choices of every token.  h: (S, width).  Gates and ups themselves go to
// ``both`` (choices, 2 ffn), in the order by experts, if wanted.
template <class E>
void experts(const Gated& w, const Choices& c, const typename E::Item* h, float* out, typename E::Item* both) {
    using Item = typename E::Item;
    const long D = w.width, F = w.ffn, per = E::per;
    std::vector<Item> x(TOKENS * D), a(TOKENS * F);
    for (long e = 0; e < c.experts; e++) {
        const Gated net = expert(w, e, per);
        for (long from = c.first[e]; from < c.first[e + 1]; from += TOKENS) {
            const Gathered<E> some(c, from, std::min(TOKENS, long(c.first[e + 1] - from)));
            some.rows(h, D, x.data());
            product<E>(by_rows(x.data(), D / per), of_panels(net.gate_up, D / per), some.count, F / 8, D / per,
                       Swiglu<Item>{a.data(), F, both ? both + from * 2 * F : nullptr});
            product<E>(by_rows(a.data(), F / per), of_panels(net.down, F / per), some.count, D / 16, F / per,
                       AddRows{out, D, some.token, some.gate});
        }
    }
}

struct ExpertGradients {
    float *h, *gates;         // (S, width), added to; of every choice
    float *gate, *up, *down;  // of the matrices of all experts; all null if they are not wanted
};

// From ∂out in rows. A gate's gradient is ∂out · net(h), which is Σ a ⊙ (W_downᵀ ∂out).
template <class E>
void experts_backward(const Gated& w, const Choices& c, const typename E::Item* d_out, const typename E::Item* h,
                      const typename E::Item* both, const ExpertGradients& d) {
    using Item = typename E::Item;
    const long D = w.width, F = w.ffn, per = E::per, most = REDUCED * per / TOKENS * TOKENS;
    std::vector<Item> x(TOKENS * D), da(TOKENS * F), d_rows(TOKENS * 2 * F);
    std::vector<Word> d_both(most / per * 2 * F), a(most / per * F);
    std::vector<Word> h_pairs(d.gate ? most / per * D : 0), out_pairs(h_pairs);
    for (long e = 0; e < c.experts; e++) {
        const Gated net = expert(w, e, per);
        const long size = D * F, skipped = d.gate ? e * size : 0;
        float *gate = d.gate + skipped, *up = d.up + skipped, *down = d.down + skipped;
        if (d.gate && c.first[e] == c.first[e + 1])
            for (float* none : {gate, up, down}) std::fill(none, none + size, 0.0f);
        for (long begin = c.first[e]; begin < c.first[e + 1]; begin += most) {
            const long rows = std::min(most, long(c.first[e + 1] - begin));
            for (long r = 0; r < rows; r += TOKENS) {
                const Gathered<E> some(c, begin + r, std::min(TOKENS, rows - r));
                some.rows(d_out, D, x.data());
                if (d.gate) to_pairs<E>(x.data(), some.count, D, D, &out_pairs[r / per * D]);
                product<E>(by_rows(x.data(), D / per), of_pairs(net.down, F), some.count, F / 16, D / per,
                           Put<Item>{da.data(), F});
                float d_gate[TOKENS];
                swiglu_backward<E, true>(da.data(), both + (begin + r) * 2 * F, some.count, F, d_rows.data(),
                                         &d_both[r / per * 2 * F], &a[r / per * F], some.gate, d_gate);
                for (long i = 0; i < some.count; i++) d.gates[c.order[begin + r + i]] = d_gate[i];
                product<E>(by_rows(d_rows.data(), 2 * F / per), of_pairs(net.gate_up, D), some.count, D / 16,
                           2 * F / per, AddRows{d.h, D, some.token});
                if (!d.gate) continue;
                some.rows(h, D, x.data());
                to_pairs<E>(x.data(), some.count, D, D, &h_pairs[r / per * D]);
            }
            if (!d.gate) continue;
            const long words = (rows + per - 1) / per;
            const bool more = begin > c.first[e];
            product<E>(by_pairs(d_both.data(), 2 * F), of_pairs(h_pairs.data(), D), 2 * F, D / 16, words,
                       Parted{gate, up, D, more});
            const Left left = by_pairs(out_pairs.data(), D);
            if (more) product<E>(left, of_pairs(a.data(), F), D, F / 16, words, Add(down, F));
            else product<E>(left, of_pairs(a.data(), F), D, F / 16, words, Put<float>{down, F});
        }
    }
}

}  // namespace lt
