#include "cuda/grouped_cutlass.cuh"

namespace mixtral::cuda {

void grouped_weight_large_accumulate(const Product& p, int processors, Scratch& scratch,
                                     cudaStream_t stream) {
  using cute::_1, cute::_2, cute::_64, cute::_128, cute::_256;
  using Tile = cute::Shape<_128, _256, _64>;
  using Cluster = cute::Shape<_2, _1, _1>;
  launch_grouped<GroupedKernel<Product::Form::weight, Tile, Cluster, true, true>>(p, processors,
                                                                                  scratch, stream);
}

}  // namespace mixtral::cuda
