// kstatus: what Flux, and every tool that waits by kstatus, makes of the objects on standard input.
// In: a JSON list of Kubernetes objects. Out: a JSON list of their statuses, in the same order.
package main

import (
	"io"
	"log"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json" // as the API machinery reads numbers: whole ones as int64
)

func main() {
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		log.Fatal(err)
	}
	var objects []any
	if err := json.Unmarshal(text, &objects); err != nil {
		log.Fatal(err)
	}
	results := make([]string, len(objects))
	for i, object := range objects {
		result, err := status.Compute(&unstructured.Unstructured{Object: object.(map[string]any)})
		if err != nil {
			log.Fatalf("object %d: %v", i, err)
		}
		results[i] = result.Status.String()
	}
	answer, err := json.Marshal(results)
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.Write(answer)
}
