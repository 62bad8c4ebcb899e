// Drafts of what follows a token, by the modules of multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2):
// module k makes h^k_i of h^(k-1)_i and t_(i+k), from which token i + k + 1 is drawn.
//
// Keys and values of module k at i rest on t_(i+k). In a prompt they are shared as far as all of them are known; behind
// that, every reply computes again the last positions, whose tokens were drafts when they were computed before.
#pragma once

#include <algorithm>
#include <vector>

#include "decoder.h"

namespace lt {

// A prompt that was read: its last states h^0, from the first position on at which replies have modules of their own.
template <class E>
struct Read {
    Segment<E> segment;
    long shared = 0;  // positions of the modules that all replies share
    std::vector<float> states;

    // Reads all but the last of n + 1 tokens.  choices: (n, routed layers, K), or null.
    void read(Pass<E>& pass, const Decoder& d, const int32_t* tokens, long n, int16_t* choices) {
        shared = std::max(0L, n - long(d.ahead));
        pass.read(tokens, n, segment, choices, [&](long first, long count, const float* hidden) {
            for (long r = std::max(0L, shared - first); r < count; r++)
                states.insert(states.end(), hidden + r * d.width, hidden + (r + 1) * d.width);
            std::vector<Row<E>> rows;
            for (long k = 0; k < d.ahead; k++, hidden = pass.further()) {
                rows.clear();
                for (long t = first; t < std::min(first + count, shared); t++)
                    rows.push_back({tokens[t + 1 + k], t, first, first, t, &segment, &segment});
                if (!rows.empty()) pass.ahead(k, rows.data(), long(rows.size()), hidden, {});
            }
        });
    }
};

// A reply whose next token stands at position ``known``: all states h^0 before that are known.
template <class E>
struct Reply {
    Read<E>* prompt = nullptr;
    Segment<E> segment;
    int32_t token = 0;  // the next one
    long length = 0;    // of the prompt, without its last token
    long written = 0;
    long drafts = 0;    // proposed for the places behind the next token: the last of ``following``
    std::vector<int32_t> following;      // of the last positions before ``known``, and the drafts
    std::vector<float> states, further;  // h^0 of the same positions, and h^k
    bool current = false;                // whether the modules have computed these positions

    long known() const { return length + written; }
    long width() const { return long(following.size()) - drafts; }
    const int32_t* drafted() const { return following.data() + width(); }

    // tokens: of the prompt, n + 1.  limit: the most tokens of the reply.
    void begin(const Decoder& d, Read<E>& read, const int32_t* tokens, long n, long limit) {
        segment.reserve(d, limit + d.ahead);
        prompt = &read, token = tokens[n], length = n, written = drafts = 0, current = false;
        states = read.states;
        following.assign(tokens + (d.ahead ? read.shared : n) + 1, tokens + n + 1);
    }

    // The next token and the drafts, to be fed.
    void rows(const Decoder& d, int16_t* choices, std::vector<Row<E>>& out) {
        for (long i = 0; i <= drafts; i++)
            out.push_back({i ? drafted()[i - 1] : token, known() + i, length, 0, written + i, &prompt->segment, &segment,
                           d.noted(choices, i)});
    }

    void forget_drafts() { following.resize(width()), drafts = 0; }

    // ``count`` tokens were taken after the same number of those rows, whose states are h^0.
    void take(const Decoder& d, const int32_t* tokens, long count, const float* hidden) {
        if (d.ahead) {
            const long settled = current ? std::max(0L, width() - long(d.ahead) + 1) : 0;  // rested on no drafts
            forget_drafts(), current = false;
            following.erase(following.begin(), following.begin() + settled);
            following.insert(following.end(), tokens, tokens + count);
            states.erase(states.begin(), states.begin() + settled * d.width);
            states.insert(states.end(), hidden, hidden + count * d.width);
        }
        token = tokens[count - 1], written += count;
    }

    // The rows of module k, from 0 on, at the positions that are to be computed.
    void rows_ahead(long k, std::vector<Row<E>>& out) {
        for (long i = 0; i < width(); i++) {
            const long t = known() - width() + i;
            out.push_back({following[i + k], t, prompt->shared, 0, t - prompt->shared, &prompt->segment, &segment});
        }
    }
};

// Module k for those of the replies that are wanted and have a state to start from: told(i, logits) of each.
template <class E, class Wanted, class Told>
void propose_one(Pass<E>& pass, const Decoder& d, long k, const std::vector<Reply<E>*>& replies, Wanted wanted, Told told) {
    std::vector<Row<E>> rows;
    std::vector<float> hidden;
    std::vector<long> last, who;
    for (long i = 0; i < long(replies.size()); i++) {
        if (!replies[i]->width() || !wanted(i)) continue;
        replies[i]->rows_ahead(k, rows);
        const auto& from = k ? replies[i]->further : replies[i]->states;
        hidden.insert(hidden.end(), from.begin(), from.end());
        last.push_back(long(rows.size()) - 1), who.push_back(i);
    }
    if (rows.empty()) return;
    float* z = pass.ahead(k, rows.data(), long(rows.size()), hidden.data(), last);
    for (size_t w = 0; w < who.size(); w++) {
        Reply<E>& reply = *replies[who[w]];
        const float* end = pass.further() + (last[w] + 1) * d.width;
        reply.further.assign(end - reply.width() * d.width, end), reply.current = true;
        told(who[w], z + w * d.padded());
    }
}

// Proposes up to room(i) tokens for reply i, which has no drafts yet.  choose(i, k, logits): the draft of module k, or -1 for none.
template <class E, class Room, class Choose>
void propose(Pass<E>& pass, const Decoder& d, const std::vector<Reply<E>*>& replies, Room room, Choose choose) {
    for (long k = 0; k < d.ahead; k++)
        propose_one(
            pass, d, k, replies, [&](long i) { return replies[i]->drafts == k && room(i) > k; },
            [&](long i, float* z) {
                const int32_t token = choose(i, k, z);
                if (token >= 0) replies[i]->following.push_back(token), replies[i]->drafts++;
            });
}

}  // namespace lt
