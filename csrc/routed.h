// Which experts a row goes to when it is decoded, and how much each of them counts. DeepSeek-V3, arXiv:2412.19437,
// equations 13 to 16. Computed in float32, for every row alone.
#pragma once

#include <algorithm>
#include <vector>

#include "experts.h"

namespace lt {

struct RoutedShape {  // experts: 0 without them; shared: width of the net of all shared experts together
    int64_t experts, chosen, ffn, shared, groups, best_groups;
    int32_t softmax, normed;  // the affinity, else sigmoid; whether the gates of the chosen are divided by their sum
    double factor;
};

struct RoutedLayer {  // null in layers that have an ordinary net
    const Word* router;          // float32, in panels
    const float* correction;     // may be null
    const Word *gate_up, *down;  // of every expert, one after the other
};

class Router {
public:
    std::vector<int64_t> chosen;  // (n, K), the best first

    // Chooses for n rows.  x: (n, width).  What is returned lives until the next call.
    Choices choose(const RoutedShape& s, const RoutedLayer& w, const float* x, long n, long width) {
        const long padded = up(s.experts, 16);
        affinity.resize(n * padded), biased.resize(padded), chosen.resize(n * s.chosen), gates.resize(n * s.chosen);
        product<F32>(by_rows(x, width), of_panels(w.router, width), n, padded / 16, width,
                     Put<float>{affinity.data(), padded});
        for (long r = 0; r < n; r++) {
            float *a = &affinity[r * padded], *g = &gates[r * s.chosen];
            int64_t* best = &chosen[r * s.chosen];
            if (s.softmax) soften(a, s.experts);
            else
                for (long e = 0; e < padded; e += 16) store(a + e, all(1.0f) / (all(1.0f) + exp(zero() - load(a + e))));
            for (long e = 0; e < s.experts; e++) biased[e] = w.correction ? a[e] + w.correction[e] : a[e];
            select(s, best);
            float total = 0;
            for (long k = 0; k < s.chosen; k++) total += g[k] = a[best[k]];
            for (long k = 0; k < s.chosen; k++) g[k] = (s.normed ? g[k] / (total + 1e-20f) : g[k]) * float(s.factor);
        }
        order.resize(n * s.chosen), first.resize(s.experts + 1);
        by_expert(chosen.data(), n * s.chosen, s.experts, order.data(), first.data());
        return {order.data(), first.data(), gates.data(), s.experts, s.chosen};
    }

private:
    static void soften(float* a, long count) {
        float most = a[0], total = 0;
        for (long e = 1; e < count; e++) most = std::max(most, a[e]);
        for (long e = 0; e < count; e += 16) {
            store(a + e, exp(load(a + e) - all(most)));
            for (long i = e; i < std::min(count, e + 16); i++) total += a[i];
        }
        for (long e = 0; e < count; e++) a[e] /= total;
    }

    // The K highest of ``biased``, inside the best groups; a group is as good as its two best. Of equal ones the first.
    void select(const RoutedShape& s, int64_t* best) {
        const long size = s.experts / s.groups;
        taken.assign(s.experts, 0);
        if (s.groups > 1) {
            worth.resize(s.groups), open.assign(s.groups, 1);
            for (long g = 0; g < s.groups; g++) {
                float one = -INFINITY, two = -INFINITY;
                for (long e = g * size; e < (g + 1) * size; e++) {
                    if (biased[e] > one) two = one, one = biased[e];
                    else if (biased[e] > two) two = biased[e];
                }
                worth[g] = one + two;
            }
            for (long k = 0; k < s.groups - s.best_groups; k++) {  // the worst ones, of equal ones the last, are out
                long worst = -1;
                for (long g = 0; g < s.groups; g++)
                    if (open[g] && (worst < 0 || worth[g] <= worth[worst])) worst = g;
                open[worst] = 0;
                std::fill_n(taken.begin() + worst * size, size, 1);
            }
        }
        for (long k = 0; k < s.chosen; k++) {
            long most = -1;
            for (long e = 0; e < s.experts; e++)
                if (!taken[e] && (most < 0 || biased[e] > biased[most])) most = e;
            best[k] = most, taken[most] = 1;
        }
    }

    std::vector<float> affinity, biased, worth, gates;
    std::vector<uint8_t> taken, open;
    std::vector<int64_t> order, first;
};

}  // namespace lt
