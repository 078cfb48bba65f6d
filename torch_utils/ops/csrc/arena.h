// Bookkeeping of one reserved range of addresses: which parts are live, which are free, which pages are resident.
//
// Placement: the smallest free block that fits, the lowest address among equals; neighbours coalesce when freed. Freed
// pages stay resident, so that the next large temporary costs no page faults.
// Return to the system: whenever a request would raise the resident bytes above
//     (1 + 1/16) * recent peak of the live bytes + 32 MiB,
// free pages go back first, those of the largest free blocks and of their ends first. The recent peak is that of the
// last 64 to 128 times its own size in requested bytes, so that memory of a phase that has ended is returned, while
// the faults that a return may cause stay below about 1 % of the traffic.
// A page is 2 MiB, a huge one. It counts as resident once a block that touches it was handed out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace next3d {

class Arena {
 public:
  static constexpr size_t kPage = size_t(2) << 20;
  static constexpr size_t kGrain = 4096;  // block sizes and addresses are multiples of it
  using Release = void (*)(char* address, size_t bytes);

  // Owns [base, base + bytes), both multiples of kPage; `release` gives whole pages back to the system.
  Arena(char* base, size_t bytes, Release release)
      : base_(base), bytes_(bytes), release_(release), resident_pages_(bytes / kPage, false) {
    const auto entry = by_size_.emplace(bytes, 0).first;
    blocks_.emplace(0, Block{bytes, by_size_.extract(entry)});
    insert_free(blocks_.begin());
  }

  bool contains(const void* p) const {
    return static_cast<const char*>(p) >= base_ && static_cast<const char*>(p) < base_ + bytes_;
  }

  // A block of at least n > 0 bytes, or null where none is left. Throws std::bad_alloc before it changes anything.
  char* take(size_t n) {
    if (n > bytes_) {
      return nullptr;
    }
    const size_t size = (n + kGrain - 1) / kGrain * kGrain;
    const auto found = by_size_.lower_bound({size, 0});
    if (found == by_size_.end()) {
      return nullptr;
    }
    const auto block = blocks_.find(found->second);
    if (block->second.size > size) {  // the rest stays free
      const size_t rest = block->first + size;
      const auto entry = by_size_.emplace(block->second.size - size, rest).first;
      try {
        blocks_.emplace_hint(std::next(block), rest, Block{entry->first, Entry()});
      } catch (...) {
        by_size_.erase(entry);
        throw;
      }
    }
    block->second.entry = by_size_.extract(found);
    block->second.size = size;
    live_ += size;
    remember_peaks(size);
    make_resident(block->first, size);
    return base_ + block->first;
  }

  // Never throws or allocates: a live block keeps its entry of the free list.
  void give(void* p) {
    auto block = blocks_.find(static_cast<char*>(p) - base_);
    live_ -= block->second.size;
    const auto next = std::next(block);
    if (next != blocks_.end() && is_free(next)) {
      by_size_.erase({next->second.size, next->first});
      block->second.size += next->second.size;
      blocks_.erase(next);
    }
    if (block != blocks_.begin() && is_free(std::prev(block))) {
      const auto previous = std::prev(block);
      by_size_.erase({previous->second.size, previous->first});
      previous->second.size += block->second.size;
      previous->second.entry = std::move(block->second.entry);
      blocks_.erase(block);
      block = previous;
    }
    insert_free(block);
  }

  // Gives all free pages back.
  void release_all() { release_down_to(0); }

  void reset_peaks() {
    peak_live_ = live_;
    peak_resident_ = resident_;
  }

  size_t live() const { return live_; }
  size_t resident() const { return resident_; }
  size_t peak_live() const { return peak_live_; }
  size_t peak_resident() const { return peak_resident_; }

 private:
  using Sizes = std::set<std::pair<size_t, size_t>>;  // (size, offset) of the free blocks
  using Entry = Sizes::node_type;
  struct Block {
    size_t size;
    Entry entry;  // of a live block; empty while the block is free
  };
  using Blocks = std::map<size_t, Block>;  // by offset, without gaps

  static bool is_free(Blocks::const_iterator block) { return block->second.entry.empty(); }

  void insert_free(Blocks::iterator block) {
    block->second.entry.value() = {block->second.size, block->first};
    by_size_.insert(std::move(block->second.entry));
    block->second.entry = Entry();
  }

  void remember_peaks(size_t size) {
    peak_live_ = std::max(peak_live_, live_);
    epoch_peak_ = std::max(epoch_peak_, live_);
    traffic_ += size;
    if (traffic_ / 64 > std::max(epoch_peak_, last_peak_)) {
      last_peak_ = epoch_peak_;
      epoch_peak_ = live_;
      traffic_ = 0;
    }
  }

  // Marks the pages of a new block, after others have made room for them.
  void make_resident(size_t offset, size_t size) {
    const size_t first = offset / kPage, last = (offset + size - 1) / kPage;
    for (size_t page = first; page <= last; ++page) {
      if (!resident_pages_[page]) {
        resident_pages_[page] = true;
        resident_ += kPage;
      }
    }
    top_ = std::max(top_, last + 1);
    const size_t peak = std::max(epoch_peak_, last_peak_);
    release_down_to(peak + peak / 16 + (size_t(32) << 20));
    peak_resident_ = std::max(peak_resident_, resident_);
  }

  void release_down_to(size_t limit) {
    for (auto entry = by_size_.rbegin(); resident_ > limit && entry != by_size_.rend(); ++entry) {
      const size_t begin = (entry->second + kPage - 1) / kPage, end = (entry->second + entry->first) / kPage;
      size_t page = std::min(end, top_);
      while (resident_ > limit && page > begin) {
        const size_t stop = page;  // a run of resident pages, as long as needed
        while (page > begin && resident_pages_[page - 1] && resident_ > limit) {
          resident_pages_[--page] = false;
          resident_ -= kPage;
        }
        if (page < stop) {
          release_(base_ + page * kPage, (stop - page) * kPage);
        } else {
          --page;
        }
      }
    }
  }

  char* base_;
  size_t bytes_;
  Release release_;
  std::vector<bool> resident_pages_;
  size_t top_ = 0;  // no page from here on was ever handed out
  Sizes by_size_;
  Blocks blocks_;
  size_t live_ = 0, resident_ = 0, peak_live_ = 0, peak_resident_ = 0;
  size_t traffic_ = 0, epoch_peak_ = 0, last_peak_ = 0;  // requested bytes and peaks of this epoch and the last
};

}  // namespace next3d
