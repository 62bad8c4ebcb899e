// Decoding step by step, for callers that choose the tokens: the logits of some slots, whose caches live here.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "decoder.h"
#include "generate.h"

namespace lt {

template <class E>
class Session {
    struct Prompt { Segment<E> segment; int64_t length = 0; };
    struct Slot {
        std::shared_ptr<Prompt> prompt;
        Segment<E> segment;
        int64_t written = 0;
    };

public:
    Session(const Decoder& decoder, int64_t slots, int64_t capacity, int threads)
        : d(decoder), slots(slots), capacity(capacity) {
        for (int t = 0; t < std::max(1, threads); t++) passes.emplace_back(d);
    }

    // Reads the prompts, all but their last token, and puts prompt which[i] into slots[i].
    Status admit(const int32_t* tokens, const int64_t* offset, int64_t prompts, const int64_t* where,
                 const int64_t* which, int64_t count) {
        std::vector<std::shared_ptr<Prompt>> read(prompts);
        Status status = shared(prompts, [&](Pass<E>& pass, int64_t i) {
            read[i] = std::make_shared<Prompt>();
            read[i]->length = offset[i + 1] - offset[i] - 1;
            pass.read(tokens + offset[i], read[i]->length, read[i]->segment);
        });
        for (int64_t i = 0; i < count; i++) slots[where[i]].prompt = read[which[i]], slots[where[i]].written = 0;
        return status;
    }

    // Feeds one token to each of some slots; logits of what follows: (count, vocabulary).
    Status step(const int64_t* where, const int64_t* tokens, int64_t count, float* logits) {
        const int64_t T = int64_t(passes.size()), share = std::max(int64_t(1), (count + T - 1) / T);
        return shared((count + share - 1) / share, [&](Pass<E>& pass, int64_t part) {
            const int64_t first = part * share, end = std::min(count, first + share);
            std::vector<Row<E>> rows;
            for (int64_t i = first; i < end; i++) {
                Slot& slot = slots[where[i]];
                slot.segment.reserve(d, capacity);
                const int64_t before = slot.prompt->length;
                rows.push_back({int32_t(tokens[i]), before + slot.written, before, 0, slot.written, &slot.prompt->segment,
                                &slot.segment});
                slot.written++;
            }
            const float* z = pass.run(rows.data(), end - first, true);
            for (int64_t i = first; i < end; i++)
                std::memcpy(logits + i * d.vocabulary, z + (i - first) * d.padded(), d.vocabulary * sizeof(float));
        });
    }

private:
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
