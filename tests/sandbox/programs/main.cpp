#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

int main(int argc, char **argv) {
    const std::string which = argv[1];
    std::string line;
    if (which == "stdin") {
        while (std::getline(std::cin, line)) std::cout << "got " << line << '\n';
    } else if (which == "args") {
        for (int i = 2; i < argc; i++) std::cout << '[' << argv[i] << "]\n";
    } else if (which == "files") {
        std::cout << std::ifstream("data/in.txt").rdbuf();
    } else if (which == "text") {
        std::cout << "žluťoučký 雪 🎉\n";
    } else if (which == "exit") {
        std::exit(7);
    } else if (which == "stderr") {
        std::cout << "to stdout\n";
        std::cerr << "to stderr\n";
    } else if (which == "uncaught") {
        throw std::runtime_error("boom");
    } else if (which == "sleep") {
        std::this_thread::sleep_for(std::chrono::minutes(1));
    } else if (which == "hog") {
        for (std::vector<std::vector<char>> held;;) held.emplace_back(4 << 20, 'x');
    } else if (which == "flood") {
        for (int n = 0; n < 1000000; n++) std::cout << std::setw(9) << std::setfill('0') << n << '\n';
    }
}
