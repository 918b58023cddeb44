// Receives what Google Benchmark measured, case after case, and keeps it for the table. A Google
// Benchmark run writes one JSON file and forgets it with the next run, so this also joins the runs
// of all cases in one file.
#pragma once

#include <benchmark/benchmark.h>

#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace torch_ext::bench {

class Recorder : public benchmark::BenchmarkReporter {
 public:
  // `json_path` may be empty. Throws std::runtime_error if the file cannot be written.
  explicit Recorder(const std::string& json_path);
  ~Recorder() override;

  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;

  // Of the repetitions; nothing if the benchmark did not run (see --benchmark_filter).
  std::optional<double> median_seconds(const std::string& benchmark) const;

 private:
  std::ofstream json_file_;
  benchmark::JSONReporter json_;
  bool first_context_ = true;
  std::map<std::string, std::vector<double>> seconds_;
};

}  // namespace torch_ext::bench
