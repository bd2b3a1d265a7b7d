#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "train/metrics.h"

namespace mixtral {

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), as TFRecord files have it.
uint32_t crc32c(std::string_view bytes);

/// One record of a TFRecord file: length (u64), masked CRC of the length, data, masked CRC of the
/// data; all little-endian.
std::string tfrecord(std::string_view data);

/// Every number of a metrics line with its TensorBoard tag, which is a group and the name that it
/// has in the line: "loss/train_loss", "router_entropy/layer_00", "expert_load_layer_00/expert_0".
std::vector<std::pair<std::string, double>> scalars(const MetricsLine& line);

/// An event file of TensorBoard (events.out.tfevents.*): a tensorflow.Event with scalars for each
/// metrics line.
class TensorBoardLog {
 public:
  /// Opens a new file in `directory`, which is created where it is missing. Of the event files that
  /// are there, everything after `last_step` is cut off, as are records that a kill tore; the new
  /// file tells readers that have them in memory to forget them. Where there is no event file,
  /// `earlier`, the lines of the run so far, are written first. Throws Error when writing fails.
  TensorBoardLog(const std::filesystem::path& directory, int64_t last_step,
                 const std::vector<MetricsLine>& earlier);
  ~TensorBoardLog();
  TensorBoardLog(const TensorBoardLog&) = delete;
  TensorBoardLog& operator=(const TensorBoardLog&) = delete;

  /// Throws Error when the disk is full or fails.
  void append(const MetricsLine& line);

  const std::filesystem::path& path() const { return path_; }

 private:
  void write(std::string_view event);

  std::filesystem::path path_;
  int descriptor_ = -1;
};

/// What of an event file is read back: for tests, and for continuing.
struct TensorBoardEvent {
  double wall_time = 0;  // seconds since 1970
  int64_t step = 0;
  std::vector<std::pair<std::string, float>> scalars;
  size_t end = 0;  // the byte of the file after it
};
/// The whole and sound records that `bytes` begin with.
std::vector<TensorBoardEvent> parse_events(std::string_view bytes);

}  // namespace mixtral
