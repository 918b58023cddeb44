#include "table.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace torch_ext::bench {
namespace {

// Below, the cost of a call counts and not the rate.
constexpr int64_t kSmall = 65536;
constexpr const char* kPasses[] = {"forward", "backward"};

std::string in_words(int threads) {
  return std::to_string(threads) + (threads == 1 ? " thread" : " threads");
}

}  // namespace

Table::Table(const std::vector<std::string>& titles, std::vector<int> threads)
    : title_width_(4), threads_(std::move(threads)) {
  for (const std::string& title : titles) {
    title_width_ = std::max(title_width_, static_cast<int>(title.size()));
  }
}

void Table::print_header() const {
  std::printf("%-*s %-8s", title_width_, "", "");
  for (const int threads : threads_) {
    std::printf("  | %29s", in_words(threads).c_str());
  }
  std::printf("\n%-*s %-8s", title_width_, "case", "pass");
  for (size_t i = 0; i < threads_.size(); ++i) {
    std::printf("  | %6s %7s %-8s %5s", "GB/s", "ceiling", "", "of it");
  }
  std::printf("\n");
}

void Table::add(
    const std::string& title,
    const std::string& pass,
    int64_t numel,
    const std::vector<std::optional<Figure>>& figures) {
  if (std::none_of(figures.begin(), figures.end(), [](const auto& f) { return f.has_value(); })) {
    return;
  }
  if (!has_header_) {
    has_header_ = true;
    print_header();
  }
  std::printf("%-*s %-8s", title_width_, title.c_str(), pass.c_str());
  for (size_t i = 0; i < figures.size(); ++i) {
    if (const std::optional<Figure>& figure = figures[i]) {
      std::printf(
          "  | %6.1f %7.1f %-8s %4.0f%%", figure->ours, figure->ceiling, figure->fastest.c_str(),
          100 * figure->fraction());
      entries_.push_back({title, pass, threads_[i], numel < kSmall, figure->fraction()});
    } else {
      std::printf("  | %29s", "");
    }
  }
  std::printf("\n");
  std::fflush(stdout);
}

void Table::print_summary() const {
  std::printf(entries_.empty() ? "" : "\n");
  for (const bool small : {false, true}) {
    for (const char* pass : kPasses) {
      for (const int threads : threads_) {
        print_summary_of(pass, threads, small);
      }
    }
  }
}

void Table::print_summary_of(const std::string& pass, int threads, bool small) const {
  double logarithms = 0;
  int count = 0;
  const Entry* worst = nullptr;
  for (const Entry& entry : entries_) {
    if (entry.pass != pass || entry.threads != threads || entry.small != small) {
      continue;
    }
    logarithms += std::log(entry.fraction);
    ++count;
    if (worst == nullptr || entry.fraction < worst->fraction) {
      worst = &entry;
    }
  }
  if (count == 0) {
    return;
  }
  std::printf(
      "%s, %s, %s 65,536 elements: geometric mean %.0f%% of the ceiling over %d, worst %.0f%%: "
      "%s\n",
      pass.c_str(), in_words(threads).c_str(), small ? "below" : "from",
      100 * std::exp(logarithms / count), count, 100 * worst->fraction, worst->title.c_str());
}

}  // namespace torch_ext::bench
