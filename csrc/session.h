// Decoding step by step, for callers that choose the tokens: the logits of some slots, whose caches live here.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "draft.h"
#include "generate.h"

namespace lt {

template <class E>
class Session {
    struct Prompt {
        Read<E> read;
        long length;
    };
    struct Slot {
        std::shared_ptr<Prompt> prompt;
        Reply<E> reply;
        bool fed = false;
        std::vector<float> hidden;  // h^0 of the rows that were fed
    };

public:
    Session(const Decoder& decoder, int64_t slots, int64_t capacity, int threads)
        : d(decoder), slots(slots), capacity(capacity) {
        for (int t = 0; t < std::max(1, threads); t++) passes.emplace_back(d);
    }

    // Reads the prompts, all but their last token, and puts prompt which[i] into slots[i].
    // choices: (tokens, routed layers, K), the experts of every token that was read, or null.
    Status admit(const int32_t* tokens, const int64_t* offset, int64_t prompts, const int64_t* where,
                 const int64_t* which, int64_t count, int16_t* choices) {
        std::vector<std::shared_ptr<Prompt>> read(prompts);
        Status status = shared(prompts, [&](Pass<E>& pass, int64_t i) {
            const long length = offset[i + 1] - offset[i] - 1;
            read[i] = std::make_shared<Prompt>();
            read[i]->length = length;
            read[i]->read.read(pass, d, tokens + offset[i], length, d.noted(choices, offset[i]));
        });
        if (status != DONE) return status;
        for (int64_t i = 0; i < count; i++) {
            Slot& slot = slots[where[i]];
            slot.prompt = read[which[i]], slot.fed = false;
            slot.reply.begin(d, slot.prompt->read, tokens + offset[which[i]], slot.prompt->length, capacity);
        }
        return status;
    }

    // The next token of some slots.  taken: how many of the rows that were fed last were right; null: one.
    void next(const int64_t* where, const int64_t* tokens, const int64_t* taken, int64_t count) {
        for (int64_t i = 0; i < count; i++) {
            Slot& slot = slots[where[i]];
            if (!slot.fed) {
                slot.reply.token = int32_t(tokens[i]);
                continue;
            }
            const long some = taken ? taken[i] : 1;
            std::vector<int32_t> right(slot.reply.drafted(), slot.reply.drafted() + some - 1);
            right.push_back(int32_t(tokens[i]));
            slot.reply.take(d, right.data(), some, slot.hidden.data());
        }
    }

    // Drafts for some slots, one module after the other.  drafts: what the module before k proposed; -1: nothing, and
    // k = 0 has none.  logits: (count, vocabulary) of module k, where told[i] is 1.
    Status ahead(int64_t k, const int64_t* where, const int64_t* drafts, int64_t count, float* logits, uint8_t* told) {
        propose(where, k ? drafts : nullptr, count, k);
        std::fill(told, told + count, 0);
        return in_parts(count, [&](Pass<E>& pass, int64_t first, int64_t end) {
            std::vector<Reply<E>*> replies;
            for (int64_t i = first; i < end; i++) replies.push_back(&slots[where[i]].reply);
            auto wanted = [&](long i) {
                const Reply<E>& reply = *replies[i];
                return reply.drafts == k && reply.written + k + 1 < capacity && reply.known() + k + 1 < d.positions;
            };
            propose_one(pass, d, k, replies, wanted, [&](long i, const float* z) {
                std::memcpy(logits + (first + i) * d.vocabulary, z, d.vocabulary * sizeof(float));
                told[first + i] = 1;
            });
        });
    }

    // Feeds the next token and the drafts of some slots, the last of which are given; logits of what follows each:
    // (count, 1 + ahead, vocabulary), and choices of the tokens that were fed: (count, 1 + ahead, routed layers, K).
    Status feed(const int64_t* where, const int64_t* drafts, int64_t count, float* logits, int16_t* choices) {
        if (d.ahead) propose(where, drafts, count, d.ahead);
        return in_parts(count, [&](Pass<E>& pass, int64_t first, int64_t end) {
            std::vector<Row<E>> rows;
            for (int64_t i = first; i < end; i++)
                slots[where[i]].reply.rows(d, d.noted(choices, i * (1 + d.ahead)), rows);
            const float *z = pass.run(rows.data(), long(rows.size()), true), *hidden = pass.hidden();
            for (int64_t i = first; i < end; i++) {
                Slot& slot = slots[where[i]];
                const long fed = 1 + slot.reply.drafts;
                slot.fed = true;
                for (long row = 0; row < fed; row++, z += d.padded())
                    std::memcpy(logits + (i * (1 + d.ahead) + row) * d.vocabulary, z, d.vocabulary * sizeof(float));
                if (d.ahead) slot.hidden.assign(hidden, hidden + fed * d.width), hidden += fed * d.width;
            }
        });
    }

private:
    // Adds the drafts of module k - 1; without any, there are none.
    void propose(const int64_t* where, const int64_t* drafts, int64_t count, int64_t k) {
        for (int64_t i = 0; i < count; i++) {
            Reply<E>& reply = slots[where[i]].reply;
            if (!drafts) reply.forget_drafts();
            else if (drafts[i] >= 0 && reply.drafts == k - 1)
                reply.following.push_back(int32_t(drafts[i])), reply.drafts++;
        }
    }

    // body(pass, first, end) on parts of 0 … count - 1, one for each thread.
    template <class Body>
    Status in_parts(int64_t count, Body body) {
        const int64_t T = int64_t(passes.size()), share = std::max(int64_t(1), (count + T - 1) / T);
        return shared((count + share - 1) / share, [&](Pass<E>& pass, int64_t part) {
            body(pass, part * share, std::min(count, (part + 1) * share));
        });
    }

    // body(pass, 0 … count - 1), dealt over the threads; the caller is one of them.
    template <class Body>
    Status shared(int64_t count, Body body) {
        std::atomic<bool> failed{false};
        auto work = [&](size_t t) {
            try {
                for (int64_t i = int64_t(t); i < count; i += int64_t(passes.size())) body(passes[t], i);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        };
        std::vector<std::thread> others;
        const size_t shares = std::min(passes.size(), size_t(count));
        size_t t = 1;
        try {
            for (; t < shares; t++) others.emplace_back(work, t);
        } catch (const std::exception&) {  // the machine gives no more threads: the rest is done here
        }
        work(0);
        for (; t < shares; t++) work(t);
        for (auto& other : others) other.join();
        return failed ? NO_MEMORY : DONE;
    }

    const Decoder d;
    std::vector<Slot> slots;
    int64_t capacity;
    std::vector<Pass<E>> passes;
};

}  // namespace lt
