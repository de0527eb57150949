// A bare loop: net/http, a goroutine per agent, one transport for all.
//
// It polls until it is ended; one line of JSON on its standard input says whom. That is all it does: no outbox, no
// state, no broker, no retry.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// The pause after an answer: P4's 200 to 500 ms, less what timers and round trips add at the gateway.
const (
	shortestPause = 205 * time.Millisecond
	longestPause  = 400 * time.Millisecond
)

type gateway struct {
	URL    string            `json:"url"`
	CAFile string            `json:"ca_file"`
	GUIDs  map[string]string `json:"guids"`
}

type answer struct {
	Retcode string          `json:"retcode"`
	Message string          `json:"message"`
	Event   json.RawMessage `json:"event"`
}

func poll(client *http.Client, url, guid string, delay time.Duration) {
	time.Sleep(delay)
	for {
		request, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			log.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json; charset=UTF-8")
		request.Header.Set("Guid", guid)
		response, err := client.Do(request)
		if err != nil {
			log.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		var read answer
		if err := json.Unmarshal(body, &read); err != nil {
			log.Fatal(err)
		}
		if read.Retcode != "0" {
			log.Fatalf("the gateway refuses: %s", body)
		}
		if renewed := response.Header.Get("Set-GUID"); renewed != "" {
			guid = strings.TrimPrefix(renewed, "JSESSIONID=")
		}
		time.Sleep(shortestPause + time.Duration(rand.Int63n(int64(longestPause-shortestPause))))
	}
}

func raiseFileLimit() {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		log.Fatal(err)
	}
	limit.Cur = limit.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		log.Fatal(err)
	}
}

func main() {
	hold := flag.Float64("hold", 10, "seconds that the gateway holds a poll: the first polls are spread over them")
	flag.Parse()
	raiseFileLimit()
	var known gateway
	if err := json.NewDecoder(os.Stdin).Decode(&known); err != nil {
		log.Fatal(err)
	}
	trusted, err := os.ReadFile(known.CAFile)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(trusted) {
		log.Fatalf("no certificate in %s", known.CAFile)
	}
	// A timeout of the client's would cost a goroutine a poll; and nothing is compressed, which would only be asked for.
	client := &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:       &tls.Config{RootCAs: roots},
			MaxIdleConnsPerHost:   len(known.GUIDs),
			ResponseHeaderTimeout: time.Duration((2**hold + 10) * float64(time.Second)),
			DisableCompression:    true,
		},
	}
	place := 0
	for workNo, guid := range known.GUIDs {
		delay := time.Duration(float64(place) / float64(len(known.GUIDs)) * *hold * float64(time.Second))
		go poll(client, known.URL+"/resource/agentevent/"+workNo, guid, delay)
		place++
	}
	select {}
}
