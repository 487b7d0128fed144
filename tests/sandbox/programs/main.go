package main

import (
	"bufio"
	"fmt"
	"os"
	"time"
)

func main() {
	switch os.Args[1] {
	case "stdin":
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			fmt.Println("got", lines.Text())
		}
	case "args":
		for _, each := range os.Args[2:] {
			fmt.Printf("[%s]\n", each)
		}
	case "files":
		content, err := os.ReadFile("data/in.txt")
		if err != nil {
			panic(err)
		}
		os.Stdout.Write(content)
	case "text":
		fmt.Println("žluťoučký 雪 🎉")
	case "exit":
		os.Exit(7)
	case "stderr":
		fmt.Println("to stdout")
		fmt.Fprintln(os.Stderr, "to stderr")
	case "uncaught":
		panic("boom")
	case "sleep":
		time.Sleep(time.Minute)
	case "hog":
		held := [][]byte{}
		for {
			block := make([]byte, 4<<20)
			for i := range block {
				block[i] = 1
			}
			held = append(held, block)
		}
	case "flood":
		out := bufio.NewWriter(os.Stdout)
		for n := 0; n < 1_000_000; n++ {
			fmt.Fprintf(out, "%09d\n", n)
		}
		out.Flush()
	}
}
