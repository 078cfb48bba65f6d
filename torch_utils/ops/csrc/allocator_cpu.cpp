// An allocator for large CPU tensors that keeps freed memory for reuse (arena.h tells how), instead of returning it to
// the system at once and paying for its page faults again. Smaller tensors, and all of them where the arena cannot be
// had, are served by torch's default allocator. Installed and read by memory.py.
#include <c10/core/CPUAllocator.h>

#include <mutex>
#include <new>

#include "arena.h"

#if defined(__linux__)
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>

#include <cstring>
#endif

namespace next3d {
namespace {

constexpr size_t kSmallestBytes = size_t(1) << 20;

class ArenaAllocator final : public c10::Allocator {
 public:
  ArenaAllocator(Arena arena, size_t largest) : arena_(std::move(arena)), largest_(largest) {}

  c10::DataPtr allocate(size_t n) override {
    void* data = n >= kSmallestBytes && n <= largest_ ? take(n) : nullptr;
    if (data != nullptr) {
      c10::profiledCPUMemoryReporter().New(data, n);
    } else {
      data = c10::GetDefaultCPUAllocator()->raw_allocate(n);  // raises torch's out-of-memory error
    }
    return {data, data, &deallocate, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &deallocate; }

  void copy_data(void* dest, const void* src, size_t count) const override { default_copy_data(dest, src, count); }

  Arena& arena() { return arena_; }
  std::mutex& mutex() { return mutex_; }

 private:
  static void deallocate(void* data);

  void* take(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      return arena_.take(n);
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
  }

  std::mutex mutex_;
  Arena arena_;
  const size_t largest_;
};

ArenaAllocator* installed = nullptr;  // never deleted: tensors live until the process ends

void ArenaAllocator::deallocate(void* data) {
  if (!installed->arena_.contains(data)) {
    c10::GetDefaultCPUAllocator()->raw_deallocate(data);
    return;
  }
  c10::profiledCPUMemoryReporter().Delete(data);
  const std::lock_guard<std::mutex> lock(installed->mutex_);
  installed->arena_.give(data);
}

#if defined(__linux__)

void release_pages(char* address, size_t bytes) { madvise(address, bytes, MADV_DONTNEED); }

// A child starts with an unlocked allocator, and shares live pages only: cached ones would be copied when reused.
void before_fork() {
  installed->mutex().lock();
  installed->arena().release_all();
}

void after_fork() { installed->mutex().unlock(); }

bool is_limited(int resource) {
  rlimit limit{};
  return getrlimit(resource, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

// Installs the allocator; null, or the reason why not.
const char* install() {
  if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) {
    return "another CPU allocator is installed";
  }
  if (is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA)) {
    return "the address space is limited (ulimit -v or -d)";
  }
  struct sysinfo memory{};
  if (sysinfo(&memory) != 0) {
    return "the size of the memory is unknown";
  }
  const size_t total = (size_t(memory.totalram) + memory.totalswap) * memory.mem_unit;
  const size_t bytes = 4 * total / Arena::kPage * Arena::kPage;  // with room for fragmentation
  void* range = mmap(nullptr, bytes + Arena::kPage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    return "the system refuses to reserve addresses";
  }
  char* base = static_cast<char*>(range);
  base += (Arena::kPage - reinterpret_cast<uintptr_t>(base) % Arena::kPage) % Arena::kPage;
  madvise(base, bytes, MADV_HUGEPAGE);  // may fail: smaller pages work too
  installed = new ArenaAllocator(Arena(base, bytes, &release_pages), total);
  pthread_atfork(&before_fork, &after_fork, &after_fork);
  c10::SetCPUAllocator(installed);  // at the default's own priority: whoever sets another one later wins
  return nullptr;
}

#else

const char* install() { return "it needs Linux"; }

#endif

}  // namespace
}  // namespace next3d

extern "C" {

// Installs the allocator once per process; null, or the reason why it is not installed.
C10_EXPORT const char* next3d_allocator_install() {
  static const char* const reason = next3d::install();
  return reason;
}

// Whether new tensors come from it.
C10_EXPORT int next3d_allocator_active() {
  return next3d::installed != nullptr && c10::GetCPUAllocator() == next3d::installed;
}

// Bytes: live, resident, peak of live, peak of resident; zeros where it is not installed.
C10_EXPORT void next3d_allocator_stats(int64_t* out) {
  std::fill_n(out, 4, int64_t(0));
  if (next3d::installed != nullptr) {
    const std::lock_guard<std::mutex> lock(next3d::installed->mutex());
    const next3d::Arena& arena = next3d::installed->arena();
    const size_t values[] = {arena.live(), arena.resident(), arena.peak_live(), arena.peak_resident()};
    std::copy_n(values, 4, out);
  }
}

C10_EXPORT void next3d_allocator_reset_peaks() {
  if (next3d::installed != nullptr) {
    const std::lock_guard<std::mutex> lock(next3d::installed->mutex());
    next3d::installed->arena().reset_peaks();
  }
}

}  // extern "C"
