#include "recorder.h"

#include <algorithm>
#include <stdexcept>

namespace torch_ext::bench {

Recorder::Recorder(const std::string& json_path) {
  if (json_path.empty()) {
    return;
  }
  json_file_.open(json_path);
  if (!json_file_) {
    throw std::runtime_error(json_path + ": cannot be written");
  }
  json_.SetOutputStream(&json_file_);
}

Recorder::~Recorder() {
  if (json_file_.is_open() && !first_context_) {
    json_.Finalize();
  }
}

bool Recorder::ReportContext(const Context& context) {
  if (first_context_) {
    first_context_ = false;
    // It may call the library a debug build, as Debian's is. What is timed does not go through it.
    PrintBasicContext(&GetErrorStream(), context);
    if (json_file_.is_open()) {
      json_.ReportContext(context);
    }
  }
  return true;
}

void Recorder::ReportRuns(const std::vector<Run>& runs) {
  if (json_file_.is_open()) {
    json_.ReportRuns(runs);
  }
  for (const Run& run : runs) {
    if (run.run_type == Run::RT_Iteration) {
      seconds_[run.run_name.function_name].push_back(
          run.GetAdjustedRealTime() / benchmark::GetTimeUnitMultiplier(run.time_unit));
    }
  }
}

std::optional<double> Recorder::median_seconds(const std::string& benchmark) const {
  const auto found = seconds_.find(benchmark);
  if (found == seconds_.end()) {
    return std::nullopt;
  }
  std::vector<double> sorted = found->second;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

}  // namespace torch_ext::bench
