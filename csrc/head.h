// From hidden states to log-probabilities, and back, a block of tokens and of the vocabulary at a time: memory does not
// grow with either.
#pragma once

#include <algorithm>
#include <vector>

#include "pointwise.h"

namespace lt {

constexpr long HEAD_ROWS = 240, HEAD_COLUMNS = 1024;

struct Head {
    const Word *panels, *pairs;  // the matrix (vocabulary, width), rows padded with zeros to a multiple of 16
    long vocabulary, width;
    float sharpness;  // 1 / temperature
};

// Logits z of some rows against the columns first … first + count, -∞ behind the vocabulary. z: [rows][HEAD_COLUMNS]
template <class E>
void logits(const Head& head, const typename E::Item* h, long rows, long first, float* z) {
    const long words = head.width / E::per, count = std::min(HEAD_COLUMNS, up(head.vocabulary, 16) - first);
    product<E>(by_rows(h, words), of_panels(head.panels + first * words, words), rows, count / 16, words,
               Put<float>{z, HEAD_COLUMNS});
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < count; c += 16) {
            float* at = z + r * HEAD_COLUMNS + c;
            store(at, load(at) * all(head.sharpness));
        }
    for (long c = head.vocabulary - first; c < count; c++)
        for (long r = 0; r < rows; r++) z[r * HEAD_COLUMNS + c] = -INFINITY;
}

// With p = softmax(z): log p(target), the entropy -Σ p log p, and log Σ eᶻ.  h: (rows, width) → each (rows,)
template <class E>
void head_forward(const Head& head, const typename E::Item* h, const int64_t* targets, long rows, float* logp,
                  float* entropy, float* lse) {
    std::vector<float> z(HEAD_ROWS * HEAD_COLUMNS);
    for (long start = 0; start < rows; start += HEAD_ROWS) {
        const long n = std::min(HEAD_ROWS, rows - start);
        float top[HEAD_ROWS], said[HEAD_ROWS];
        double mass[HEAD_ROWS], energy[HEAD_ROWS];  // Σ e^(z - top) and Σ z e^(z - top)
        for (long r = 0; r < n; r++) top[r] = -INFINITY, said[r] = 0, mass[r] = energy[r] = 0;
        for (long first = 0; first < head.vocabulary; first += HEAD_COLUMNS) {
            const long count = std::min(HEAD_COLUMNS, head.vocabulary - first);
            logits<E>(head, h + start * head.width, n, first, z.data());
            for (long r = 0; r < n; r++) {
                const float* row = z.data() + r * HEAD_COLUMNS;
                Lanes most = load(row);
                for (long c = 16; c < count; c += 16) most = max(most, load(row + c));
                const float peak = std::max(top[r], highest(most));
                Lanes m = zero(), e = zero();
                for (long c = 0; c < count; c += 16) {
                    Lanes v = max(all(-1e30f), load(row + c)), x = exp(v - all(peak));
                    m = m + x, e = fma(v, x, e);
                }
                const double shrink = std::exp(double(top[r]) - double(peak));
                mass[r] = mass[r] * shrink + sum(m), energy[r] = energy[r] * shrink + sum(e), top[r] = peak;
                const long target = targets[start + r] - first;
                if (target >= 0 && target < count) said[r] = row[target];
            }
        }
        for (long r = 0; r < n; r++) {
            const double all_of = double(top[r]) + std::log(mass[r]);
            lse[start + r] = float(all_of), logp[start + r] = float(said[r] - all_of);
            entropy[start + r] = float(all_of - energy[r] / mass[r]);
        }
    }
}

// ∂ log p(target)/∂z = onehot - p,  ∂H/∂z = -p (log p + H).  ∂h (rows, width) and ∂W (vocabulary, width) are added to.
template <class E>
void head_backward(const Head& head, const typename E::Item* h, const int64_t* targets, const float* lse,
                   const float* entropy, const float* d_logp, const float* d_entropy, long rows, float* dh, float* dw) {
    std::vector<float> z(HEAD_ROWS * HEAD_COLUMNS);
    std::vector<typename E::Item> dz_rows(HEAD_ROWS * HEAD_COLUMNS);
    std::vector<Word> dz_pairs(HEAD_ROWS * HEAD_COLUMNS), h_pairs(HEAD_ROWS * head.width);
    for (long start = 0; start < rows; start += HEAD_ROWS) {
        const long n = std::min(HEAD_ROWS, rows - start), reduced = up(n, E::per) / E::per;
        to_pairs<E>(h + start * head.width, n, head.width, head.width, h_pairs.data());
        for (long first = 0; first < head.vocabulary; first += HEAD_COLUMNS) {
            const long count = std::min(HEAD_COLUMNS, head.vocabulary - first), wide = up(count, 16);
            logits<E>(head, h + start * head.width, n, first, z.data());
            for (long r = 0; r < n; r++) {
                float* row = z.data() + r * HEAD_COLUMNS;
                const long i = start + r, target = targets[i] - first;
                for (long c = 0; c < wide; c += 16) {
                    Lanes log_p = max(all(-1e30f), load(row + c)) - all(lse[i]), p = exp(log_p);
                    Lanes pull = fma(all(d_entropy[i]), log_p + all(entropy[i]), all(d_logp[i]));
                    store(row + c, (zero() - p) * pull * all(head.sharpness));
                }
                for (long c = count; c < wide; c++) row[c] = 0;
                if (target >= 0 && target < count) row[target] += d_logp[i] * head.sharpness;
            }
            to_rows<E>(z.data(), n, wide, HEAD_COLUMNS, dz_rows.data());
            to_pairs<E>(z.data(), n, wide, HEAD_COLUMNS, dz_pairs.data());
            product<E>(by_rows(dz_rows.data(), wide / E::per),
                       of_pairs(head.pairs + first / E::per * head.width, head.width), n, head.width / 16, wide / E::per,
                       Add{dh + start * head.width, head.width});
            if (dw)
                product<E>(by_pairs(dz_pairs.data(), wide), of_pairs(h_pairs.data(), head.width), count, head.width / 16,
                           reduced, Add{dw + first * head.width, head.width});
        }
    }
}

}  // namespace lt
