#include "picture.hpp"

#include <jpeglib.h>
#include <png.h>

#include <array>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "error.hpp"

namespace fs = std::filesystem;

namespace rism {
namespace {

constexpr std::size_t max_pixels = 64'000'000;

struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

void check_size(std::size_t width, std::size_t height, const fs::path& file) {
    if (width == 0 || height == 0 || width > max_pixels / height) {
        throw Error(file.string() + " has " + std::to_string(width) + " x " +
                    std::to_string(height) + " pixels, expected at most " +
                    std::to_string(max_pixels) + ": make it smaller first");
    }
}

/// Tag 0x0112 of a TIFF header and its first folder; 1 where there is none.
unsigned orientation(const unsigned char* data, std::size_t size) {
    if (size < 8) return 1;
    const bool little = data[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t i = 0; i < bytes && at + i < size; ++i) {
            value |= std::size_t{data[at + i]} << 8U * (little ? i : bytes - 1 - i);
        }
        return value;
    };
    if (std::memcmp(data, "II", 2) != 0 && std::memcmp(data, "MM", 2) != 0) return 1;
    const std::size_t folder = number(4, 4);
    if (number(2, 2) != 42 || folder + 2 > size) return 1;
    const std::size_t entries = number(folder, 2);
    for (std::size_t i = 0; i < entries && folder + 2 + 12 * (i + 1) <= size; ++i) {
        const std::size_t entry = folder + 2 + 12 * i;
        if (number(entry, 2) == 0x0112) {
            const std::size_t value = number(entry + 8, 2);
            return value >= 1 && value <= 8 ? static_cast<unsigned>(value) : 1;
        }
    }
    return 1;
}

/// The picture as it is meant to be seen.
Picture upright(Picture picture, unsigned orientation) {
    if (orientation <= 1) return picture;
    const auto [width, height] = picture.size;
    const bool turned = orientation >= 5;
    Picture result{turned ? Size{height, width} : Size{width, height}, {}};
    result.rgb.resize(picture.rgb.size());
    for (std::size_t y = 0; y < result.size.height; ++y) {
        for (std::size_t x = 0; x < result.size.width; ++x) {
            std::size_t from_x = turned ? y : x, from_y = turned ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
                from_x = width - 1 - from_x;
            }
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
                from_y = height - 1 - from_y;
            }
            std::memcpy(&result.rgb[(y * result.size.width + x) * 3],
                        &picture.rgb[(from_y * width + from_x) * 3], 3);
        }
    }
    return result;
}

/// Colour over white.
std::uint8_t over_white(unsigned colour, unsigned alpha) {
    const unsigned sum = colour * alpha + 255U * (255U - alpha);
    return static_cast<std::uint8_t>((sum + 127U) / 255U);
}

// libpng and libjpeg leave by longjmp, which runs no destructors: what has to live through it
// is made before setjmp, in the caller's frame.

struct PngState {
    png_structp png = nullptr;
    png_infop info = nullptr;
    std::string message;
    std::vector<std::uint8_t> rgba;
    std::vector<png_bytep> rows;
    png_uint_32 width = 0, height = 0;
    unsigned turn = 1;

    ~PngState() {
        if (png != nullptr) png_destroy_read_struct(&png, &info, nullptr);
    }
};

extern "C" void png_failed(png_structp png, png_const_charp message) {
    static_cast<PngState*>(png_get_error_ptr(png))->message = message;
    png_longjmp(png, 1);
}

extern "C" void png_warned(png_structp, png_const_charp) {}

/// Header and settings. False where libpng gave up.
bool png_open(PngState& state, std::FILE* file) {
    if (setjmp(png_jmpbuf(state.png)) != 0) return false;
    png_init_io(state.png, file);
    png_read_info(state.png, state.info);
    state.width = png_get_image_width(state.png, state.info);
    state.height = png_get_image_height(state.png, state.info);
    if (png_get_bit_depth(state.png, state.info) == 16) {
        png_error(state.png, "16 bits a channel, expected 8");
    }
    png_set_expand(state.png);       // palettes, 1 to 4 bits, transparent colours
    png_set_gray_to_rgb(state.png);
    png_set_add_alpha(state.png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(state.png);
    png_read_update_info(state.png, state.info);
    if (png_get_rowbytes(state.png, state.info) != std::size_t{state.width} * 4) {
        png_error(state.png, "of a kind that is not known here");
    }
    return true;
}

bool png_pixels(PngState& state) {
    if (setjmp(png_jmpbuf(state.png)) != 0) return false;
    png_read_image(state.png, state.rows.data());
    png_read_end(state.png, state.info);
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(state.png, state.info, &size, &exif) != 0) {
        state.turn = orientation(exif, size);
    }
    return true;
}

Picture read_png(std::FILE* stream, const fs::path& file) {
    PngState state;
    const auto refuse = [&] { throw Error(file.string() + " is no usable PNG: " + state.message); };
    state.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &state, png_failed, png_warned);
    if (state.png == nullptr) throw std::bad_alloc();
    state.info = png_create_info_struct(state.png);
    if (state.info == nullptr) throw std::bad_alloc();
    if (!png_open(state, stream)) refuse();
    check_size(state.width, state.height, file);
    state.rgba.resize(std::size_t{state.width} * state.height * 4);
    for (std::size_t y = 0; y < state.height; ++y) {
        state.rows.push_back(state.rgba.data() + y * state.width * 4);
    }
    if (!png_pixels(state)) refuse();
    Picture picture{{state.width, state.height}, {}};
    picture.rgb.reserve(state.rgba.size() / 4 * 3);
    for (std::size_t i = 0; i < state.rgba.size(); i += 4) {
        for (std::size_t c = 0; c < 3; ++c) {
            picture.rgb.push_back(over_white(state.rgba[i + c], state.rgba[i + 3]));
        }
    }
    return upright(std::move(picture), state.turn);
}

struct JpegState {
    jpeg_decompress_struct jpeg{};
    jpeg_error_mgr errors{};
    std::jmp_buf back;
    std::array<char, JMSG_LENGTH_MAX> message{};

    ~JpegState() { jpeg_destroy_decompress(&jpeg); }
};

extern "C" void jpeg_failed(j_common_ptr jpeg) {
    auto* state = static_cast<JpegState*>(jpeg->client_data);
    jpeg->err->format_message(jpeg, state->message.data());
    std::longjmp(state->back, 1);
}

extern "C" void jpeg_said(j_common_ptr) {}

bool jpeg_open(JpegState& state, std::FILE* file) {
    if (setjmp(state.back) != 0) return false;
    jpeg_create_decompress(&state.jpeg);
    jpeg_stdio_src(&state.jpeg, file);
    jpeg_save_markers(&state.jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&state.jpeg, TRUE);
    return true;
}

bool jpeg_pixels(JpegState& state, std::vector<std::uint8_t>& rgb) {
    if (setjmp(state.back) != 0) return false;
    state.jpeg.out_color_space = JCS_RGB;
    jpeg_start_decompress(&state.jpeg);
    while (state.jpeg.output_scanline < state.jpeg.output_height) {
        JSAMPROW row = rgb.data() + std::size_t{state.jpeg.output_scanline} *
                                        state.jpeg.output_width * 3;
        jpeg_read_scanlines(&state.jpeg, &row, 1);
    }
    jpeg_finish_decompress(&state.jpeg);
    return true;
}

Picture read_jpeg(std::FILE* stream, const fs::path& file) {
    JpegState state;
    const auto refuse = [&] {
        throw Error(file.string() + " is no usable JPEG: " + state.message.data());
    };
    state.jpeg.err = jpeg_std_error(&state.errors);
    state.jpeg.client_data = &state;
    state.errors.error_exit = jpeg_failed;
    state.errors.output_message = jpeg_said;
    if (!jpeg_open(state, stream)) refuse();
    const std::size_t width = state.jpeg.image_width, height = state.jpeg.image_height;
    check_size(width, height, file);
    if (state.jpeg.jpeg_color_space == JCS_CMYK || state.jpeg.jpeg_color_space == JCS_YCCK) {
        throw Error(file.string() + " is in CMYK, expected RGB: convert it first");
    }
    unsigned turn = 1;  // now: libjpeg forgets its markers when the last row is read
    for (auto* marker = state.jpeg.marker_list; marker != nullptr; marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            turn = orientation(marker->data + 6, marker->data_length - 6);
            break;
        }
    }
    Picture picture{{width, height}, std::vector<std::uint8_t>(width * height * 3)};
    if (!jpeg_pixels(state, picture.rgb)) refuse();
    if (state.errors.num_warnings > 0) {
        throw Error(file.string() + " is a damaged JPEG: copy it again");
    }
    return upright(std::move(picture), turn);
}

}  // namespace

Picture read_picture(const fs::path& file) {
    std::error_code error;
    const File stream(fs::is_directory(file, error) ? nullptr
                                                    : std::fopen(file.string().c_str(), "rb"));
    if (!stream) throw Error("no picture at " + file.string());
    std::array<unsigned char, 8> head{};
    const std::size_t read = std::fread(head.data(), 1, head.size(), stream.get());
    std::rewind(stream.get());
    if (read == head.size() && png_sig_cmp(head.data(), 0, head.size()) == 0) {
        return read_png(stream.get(), file);
    }
    if (head[0] == 0xFF && head[1] == 0xD8) return read_jpeg(stream.get(), file);
    throw Error(file.string() + " is neither PNG nor JPEG: convert it first");
}

void write_mask(const fs::path& file, const std::vector<std::uint8_t>& mask, Size size) {
    std::vector<std::uint8_t> grey(mask.size());
    for (std::size_t i = 0; i < mask.size(); ++i) grey[i] = mask[i] != 0 ? 255 : 0;
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(size.width);
    image.height = static_cast<png_uint_32>(size.height);
    image.format = PNG_FORMAT_GRAY;
    fs::path partial = file;
    partial += ".partial";
    std::error_code error;
    const int done = png_image_write_to_file(&image, partial.string().c_str(), 0, grey.data(), 0,
                                             nullptr);
    if (done != 0) fs::rename(partial, file, error);
    if (done == 0 || error) {
        std::error_code ignored;
        fs::remove(partial, ignored);
        throw Error("the mask cannot be written to " + file.string() + ": " +
                    (done == 0 ? image.message : error.message()));
    }
}

}  // namespace rism
