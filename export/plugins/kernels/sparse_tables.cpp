// Voxels are keys in rising order, ((z * pitch_y) + y) * pitch_x + x with room for the padding on all
// sides, so that the voxels which one line of a kernel sees follow one another and nothing has to be
// checked at the borders. From one output row to the next a line moves up: one cursor per line of the
// kernel walks along the keys, and a table costs about one step per entry, whatever the size of the grid.
#include "sparse_tables.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "threads.h"

namespace {

constexpr sparse_tables_conv submanifold = {{3, 3, 3}, {1, 1, 1}, {1, 1, 1}};
constexpr int max_kernel = 16, max_stride = 16;
constexpr int64_t max_rows = std::numeric_limits<int32_t>::max() - 1;
constexpr int64_t behind_all = std::numeric_limits<int64_t>::max();
constexpr int32_t rows_per_job = 2048;

struct Place {
  int32_t z, y, x;
};

struct Level {
  int32_t size[3];
  int32_t margin[3];                 // room before the first and behind the last place of each axis
  std::vector<Place> places;         // sorted by z, y, x
  std::vector<int64_t> keys;         // of the places; behind_all at the end
  std::vector<int32_t> row_of_rank;  // empty: rows are sorted, too
  int64_t num_dropped = 0;

  int64_t pitch(int axis) const { return int64_t{size[axis]} + 2 * margin[axis]; }
  // of a place counted from the corner of the margin
  int64_t key(int64_t z, int64_t y, int64_t x) const { return (z * pitch(1) + y) * pitch(2) + x; }
  int32_t num_rows() const { return static_cast<int32_t>(places.size()); }
  int32_t row(int32_t rank) const { return row_of_rank.empty() ? rank : row_of_rank[rank]; }

  void make_keys() {
    keys.reserve(places.size() + 1);
    for (const Place& p : places) keys.push_back(key(p.z + margin[0], p.y + margin[1], p.x + margin[2]));
    keys.push_back(behind_all);
  }
};

// Outputs that an input coordinate reaches along one axis: first..last, none where last < first.
struct Reach {
  int32_t first, last;
};

std::vector<Reach> reaches(int32_t size_in, int32_t size_out, int32_t kernel, int32_t stride,
                           int32_t padding) {
  std::vector<Reach> reach(size_in);
  for (int32_t i = 0; i < size_in; i++) {
    const int64_t last = int64_t{i} + padding;  // times the stride: of the output whose first offset is i
    const int64_t first = last - kernel + 1;    // whose last offset is i
    reach[i] = {static_cast<int32_t>(first <= 0 ? 0 : (first + stride - 1) / stride),
                static_cast<int32_t>(std::min<int64_t>(last / stride, size_out - 1))};
  }
  return reach;
}

int set_voxels(Level& level, const int32_t* cells, int32_t num_voxels, int32_t capacity) {
  const int32_t num = std::min(num_voxels, capacity);
  level.num_dropped = num_voxels - num;
  if (!std::is_sorted(cells, cells + num)) {
    level.row_of_rank.resize(num);
    std::iota(level.row_of_rank.begin(), level.row_of_rank.end(), 0);
    std::sort(level.row_of_rank.begin(), level.row_of_rank.end(),
              [cells](int32_t a, int32_t b) { return cells[a] < cells[b]; });
  }
  const int64_t num_cells = int64_t{level.size[0]} * level.size[1] * level.size[2];
  level.places.reserve(num);
  for (int32_t rank = 0, before = -1; rank < num; rank++) {
    const int32_t cell = cells[level.row(rank)];
    if (cell < 0 || cell >= num_cells) return SPARSE_TABLES_BAD_CELL;
    if (cell == before) return SPARSE_TABLES_TWICE;
    before = cell;
    const int32_t line = cell / level.size[2];
    level.places.push_back({line / level.size[1], line % level.size[1], cell % level.size[2]});
  }
  return SPARSE_TABLES_OK;
}

// One bit per place of a level; each line along x begins at a word of its own.
class Bitmap {
 public:
  explicit Bitmap(const int32_t* size)
      : size_{size[0], size[1], size[2]}, line_words_(size[2] / 64 + 1) {
    // pages of calloc that nothing is written to cost nothing: most of a grid is empty
    words_.reset(static_cast<uint64_t*>(
        std::calloc(static_cast<size_t>(int64_t{size[0]} * size[1] * line_words_), sizeof(uint64_t))));
    if (!words_) throw std::bad_alloc();
  }

  void set_range(int32_t z, int32_t y, int32_t first, int32_t last) {
    uint64_t* line = &words_[(int64_t{z} * size_[1] + y) * line_words_];
    for (int32_t x = first; x <= last; x++) line[x >> 6] |= uint64_t{1} << (x & 63);
  }

  // Lists the places that are set, at most so many; returns how many there are.
  int64_t list(int64_t capacity, std::vector<Place>& places) const {
    int64_t num = 0;
    const uint64_t* word = words_.get();
    for (int32_t z = 0; z < size_[0]; z++)
      for (int32_t y = 0; y < size_[1]; y++)
        for (int32_t x = 0; x < line_words_; x++)
          for (uint64_t rest = *word++; rest != 0; rest &= rest - 1)
            if (num++ < capacity) places.push_back({z, y, x * 64 + __builtin_ctzll(rest)});
    return num;
  }

 private:
  int32_t size_[3];
  int32_t line_words_;
  std::unique_ptr<uint64_t[], decltype(&std::free)> words_{nullptr, &std::free};
};

// Output voxels of a convolution, in the order of their places; those beyond the capacity are dropped.
void reach_voxels(const Level& in, const sparse_tables_conv& conv, int64_t capacity, Level& out) {
  std::vector<Reach> reach[3];
  for (int a = 0; a < 3; a++)
    reach[a] = reaches(in.size[a], out.size[a], conv.kernel[a], conv.stride[a], conv.padding[a]);
  Bitmap reached(out.size);
  for (const Place& place : in.places) {
    const Reach z = reach[0][place.z], y = reach[1][place.y], x = reach[2][place.x];
    for (int32_t oz = z.first; oz <= z.last; oz++)
      for (int32_t oy = y.first; oy <= y.last; oy++) reached.set_range(oz, oy, x.first, x.last);
  }
  out.places.reserve(in.places.size());
  out.num_dropped = reached.list(capacity, out.places) - out.num_rows();
}

struct Table {
  const Level* in;
  const Level* out;
  const sparse_tables_conv* conv;
  int32_t* entries;
};

// Fills the rows of the ranks begin .. end - 1; Width: the kernel's along x, 0 for any.
template <int Width>
void fill_rows(const Table& table, int32_t begin, int32_t end) {
  const Level &in = *table.in, &out = *table.out;
  const sparse_tables_conv& conv = *table.conv;
  const int width = Width ? Width : conv.kernel[2];
  const int num_lines = conv.kernel[0] * conv.kernel[1];
  int64_t line_key[max_kernel * max_kernel];
  int64_t cursor[max_kernel * max_kernel];
  const auto corner = [&](const Place& p) {
    return in.key(int64_t{p.z} * conv.stride[0] + in.margin[0] - conv.padding[0],
                  int64_t{p.y} * conv.stride[1] + in.margin[1] - conv.padding[1],
                  int64_t{p.x} * conv.stride[2] + in.margin[2] - conv.padding[2]);
  };
  for (int line = 0; line < num_lines; line++) {
    line_key[line] = in.key(line / conv.kernel[1], line % conv.kernel[1], 0);
    const int64_t first = corner(out.places[begin]) + line_key[line];
    cursor[line] = std::lower_bound(in.keys.begin(), in.keys.end(), first) - in.keys.begin();
  }
  for (int32_t rank = begin; rank < end; rank++) {
    const int64_t seen = corner(out.places[rank]);
    int32_t* entry = table.entries + int64_t{out.row(rank)} * num_lines * width;
    for (int line = 0; line < num_lines; line++) {
      const int64_t first = seen + line_key[line];
      const int64_t* key = &in.keys[cursor[line]];
      while (*key < first) key++;
      cursor[line] = key - in.keys.data();
      for (int x = 0; x < width; x++) {
        const bool occupied = *key == first + x;
        *entry++ = occupied ? in.row(static_cast<int32_t>(key - in.keys.data())) + 1 : 0;
        key += occupied;
      }
    }
  }
}

void fill(const Table& table, int32_t begin, int32_t end) {
  if (table.conv->kernel[2] == 3)
    fill_rows<3>(table, begin, end);
  else if (table.conv->kernel[2] == 1)
    fill_rows<1>(table, begin, end);
  else
    fill_rows<0>(table, begin, end);
}

void fill_tables(const std::vector<Table>& tables, int32_t num_threads) {
  struct Job {
    const Table* table;
    int32_t begin, end;
  };
  std::vector<Job> jobs;
  for (const Table& table : tables) {
    const int32_t rows = table.out->num_rows();
    for (int32_t begin = 0; begin < rows; begin += std::min(rows_per_job, rows - begin))
      jobs.push_back({&table, begin, begin + std::min(rows_per_job, rows - begin)});
  }
  bev_pool::for_each_part(static_cast<int32_t>(jobs.size()), num_threads, [&jobs](int32_t job) {
    fill(*jobs[job].table, jobs[job].begin, jobs[job].end);
  });
}

void fill_dense(const Level& level, int32_t* dense) {
  const int64_t nz = level.size[0], ny = level.size[1], nx = level.size[2];
  std::fill(dense, dense + nz * ny * nx, 0);
  for (int32_t rank = 0; rank < level.num_rows(); rank++) {
    const Place place = level.places[rank];
    dense[(place.y * nx + place.x) * nz + place.z] = level.row(rank) + 1;
  }
}

bool fits(const int32_t* size) {
  int64_t cells = 1;
  for (int a = 0; a < 3; a++) {
    if (size[a] < 1) return false;
    cells *= size[a];
    if (cells > max_rows) return false;
  }
  return true;
}

bool makes_sense(const sparse_tables_conv& conv) {
  for (int a = 0; a < 3; a++) {
    if (conv.kernel[a] < 1 || conv.kernel[a] > max_kernel) return false;
    if (conv.stride[a] < 1 || conv.stride[a] > max_stride) return false;
    if (conv.padding[a] < 0 || conv.padding[a] >= conv.kernel[a]) return false;
  }
  return true;
}

// Size of the next level; false where there is none.
bool output_size(const int32_t* in, const sparse_tables_conv& conv, int32_t* out) {
  for (int a = 0; a < 3; a++) {
    const int64_t room = int64_t{in[a]} + 2 * conv.padding[a] - conv.kernel[a];
    if (room < 0 || room >= max_rows) return false;
    out[a] = static_cast<int32_t>(room / conv.stride[a] + 1);
  }
  return fits(out);
}

int build(const int32_t* cells, int32_t num_voxels, const int32_t* size, const sparse_tables_conv* convs,
          int32_t num_convs, const int32_t* capacities, int32_t num_threads, int32_t* const* within,
          int32_t* const* down, int32_t* dense, int32_t* num_rows, int32_t* num_dropped) {
  if (!std::all_of(convs, convs + num_convs, makes_sense)) return SPARSE_TABLES_BAD_SIZE;
  std::vector<Level> levels;
  levels.reserve(num_convs + 1);
  for (int32_t l = 0; l <= num_convs; l++) {
    int32_t next[3] = {};
    if (l > 0 && !output_size(levels[l - 1].size, convs[l - 1], next)) return SPARSE_TABLES_BAD_SIZE;
    if (capacities[l] < 0 || capacities[l] > max_rows) return SPARSE_TABLES_BAD_SIZE;
    Level& level = levels.emplace_back();
    for (int a = 0; a < 3; a++) {
      level.size[a] = l == 0 ? size[a] : next[a];
      level.margin[a] = std::max(submanifold.padding[a], l < num_convs ? convs[l].padding[a] : 0);
    }
    if (l > 0)
      reach_voxels(levels[l - 1], convs[l - 1], capacities[l], level);
    else if (const int error = set_voxels(level, cells, num_voxels, capacities[0]))
      return error;
    level.make_keys();
    num_rows[l] = level.num_rows();
    num_dropped[l] = static_cast<int32_t>(std::min(level.num_dropped, max_rows));
  }
  std::vector<Table> tables;
  for (int32_t l = 0; l < num_convs; l++) {
    tables.push_back({&levels[l], &levels[l], &submanifold, within[l]});
    tables.push_back({&levels[l], &levels[l + 1], &convs[l], down[l]});
  }
  fill_tables(tables, num_threads);
  fill_dense(levels.back(), dense);
  return SPARSE_TABLES_OK;
}

}  // namespace

extern "C" int sparse_tables_build(const int32_t* cells, int32_t num_voxels, const int32_t* size,
                                   const sparse_tables_conv* convs, int32_t num_convs,
                                   const int32_t* capacities, int32_t num_threads,
                                   int32_t* const* within, int32_t* const* down, int32_t* dense,
                                   int32_t* num_rows, int32_t* num_dropped) {
  if (num_voxels < 0 || num_convs < 1 || (num_voxels > 0 && !cells) || !size || !convs || !capacities ||
      !within || !down || !dense || !num_rows || !num_dropped || !fits(size))
    return SPARSE_TABLES_BAD_SIZE;
  try {
    return build(cells, num_voxels, size, convs, num_convs, capacities, num_threads, within,
                 down, dense, num_rows, num_dropped);
  } catch (...) {
    return SPARSE_TABLES_NO_MEMORY;
  }
}
